"""One call of a Python client: drive_python.py CLIENT MODE URL.

Prints the answer; for an error its type and message, in one line. Runs in the environment of
`make clients`, which has the clients and not Hearth.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

warnings.filterwarnings("ignore")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

KEY = "any"
QUESTION = "Who are you?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]


def openai(url: str, model: str) -> Iterator[str]:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    if MODE == "text":
        made = client.chat.completions.create(model=model, messages=MESSAGES)
        yield made.choices[0].message.content or ""
        return
    for chunk in client.chat.completions.create(model=model, messages=MESSAGES, stream=True):
        yield chunk.choices[0].delta.content or ""


def openai_responses(url: str, model: str) -> Iterator[str]:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    if MODE == "text":
        yield client.responses.create(model=model, input=QUESTION).output_text
        return
    with client.responses.stream(model=model, input=QUESTION) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                yield event.delta


def anthropic(url: str, model: str) -> Iterator[str]:
    from anthropic import Anthropic

    client = Anthropic(base_url=url, api_key=KEY, max_retries=0)
    if MODE == "text":
        made = client.messages.create(model=model, max_tokens=100, messages=MESSAGES)
        yield "".join(block.text for block in made.content if block.type == "text")
        return
    with client.messages.stream(model=model, max_tokens=100, messages=MESSAGES) as stream:
        yield from stream.text_stream


def ollama(url: str, model: str) -> Iterator[str]:
    from ollama import Client

    client = Client(url)
    if MODE == "text":
        yield client.chat(model, MESSAGES).message.content or ""
        return
    for part in client.chat(model, MESSAGES, stream=True):
        yield part.message.content or ""


def langchain_openai(url: str, model: str) -> Iterator[str]:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{url}/v1", api_key=KEY, model=model, max_retries=0)
    if MODE == "text":
        yield str(chat.invoke(QUESTION).content)
        return
    for chunk in chat.stream(QUESTION):
        yield str(chunk.content)


def langchain_ollama(url: str, model: str) -> Iterator[str]:
    from langchain_ollama import ChatOllama

    chat = ChatOllama(base_url=url, model=model)
    if MODE == "text":
        yield str(chat.invoke(QUESTION).content)
        return
    for chunk in chat.stream(QUESTION):
        yield str(chunk.content)


def llama_index_openai(url: str, model: str) -> Iterator[str]:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    chat = OpenAILike(
        api_base=f"{url}/v1", api_key=KEY, model=model, is_chat_model=True, max_retries=0
    )
    messages = [ChatMessage(role="user", content=QUESTION)]
    if MODE == "text":
        yield str(chat.chat(messages).message.content)
        return
    for chunk in chat.stream_chat(messages):
        yield chunk.delta or ""


def llama_index_ollama(url: str, model: str) -> Iterator[str]:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.ollama import Ollama

    chat = Ollama(base_url=url, model=model)
    messages = [ChatMessage(role="user", content=QUESTION)]
    if MODE == "text":
        yield str(chat.chat(messages).message.content)
        return
    for chunk in chat.stream_chat(messages):
        yield chunk.delta or ""


def litellm_openai(url: str, model: str) -> Iterator[str]:
    return _litellm(f"openai/{model}", f"{url}/v1")


def litellm_ollama(url: str, model: str) -> Iterator[str]:
    return _litellm(f"ollama_chat/{model}", url)


def _litellm(model: str, base: str) -> Iterator[str]:
    import litellm

    litellm.suppress_debug_info = True
    given: Any = {"model": model, "api_base": base, "api_key": KEY, "messages": MESSAGES}
    if MODE == "text":
        made: Any = litellm.completion(**given, num_retries=0)
        yield made.choices[0].message.content
        return
    for chunk in litellm.completion(**given, num_retries=0, stream=True):
        yield chunk.choices[0].delta.content or ""


CLIENTS: dict[str, Callable[[str, str], Iterator[str]]] = {
    function.__name__: function
    for function in (
        openai,
        openai_responses,
        anthropic,
        ollama,
        langchain_openai,
        langchain_ollama,
        llama_index_openai,
        llama_index_ollama,
        litellm_openai,
        litellm_ollama,
    )
}

if __name__ == "__main__":
    _, name, MODE, root = sys.argv
    try:
        called = CLIENTS[name](root, "missing" if MODE == "error" else "tiny")
        print("".join(called))
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " "))
