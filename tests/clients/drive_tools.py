"""Two tool calls and their results through a Python client: drive_tools.py CLIENT MODE URL.

MODE is text or stream: how the calls are read. Prints each call, then the answer behind the
results. Runs in the environment of `make clients`, which has the clients and not Hearth.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

warnings.filterwarnings("ignore")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

KEY, MODEL = "any", "tiny"
QUESTION = "Is it warm?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


def weather(city: str) -> str:
    """The weather."""
    return f"warm in {city}"


def called(name: str, arguments: dict[str, str]) -> str:
    """A call as it is printed."""
    return f"{name} {arguments['city']}"


def openai(url: str, stream: bool) -> Iterator[str]:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    asked: Any = {"model": MODEL, "tools": TOOLS}
    if stream:
        with client.chat.completions.stream(messages=MESSAGES, **asked) as events:
            made: Any = events.get_final_completion()
    else:
        made = client.chat.completions.create(messages=MESSAGES, **asked)
    message = made.choices[0].message
    messages = [*MESSAGES, message.model_dump(exclude_none=True)]
    for call in message.tool_calls:
        arguments = json.loads(call.function.arguments)
        yield called(call.function.name, arguments)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": weather(**arguments)})
    done: Any = client.chat.completions.create(messages=messages, **asked)
    yield done.choices[0].message.content


def openai_responses(url: str, stream: bool) -> Iterator[str]:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    asked: Any = {"model": MODEL, "tools": [{"type": "function", **FUNCTION, "strict": False}]}
    if stream:
        with client.responses.stream(input=QUESTION, **asked) as events:
            made: Any = events.get_final_response()
    else:
        made = client.responses.create(input=QUESTION, **asked)
    given: list[Any] = list(MESSAGES)
    for item in made.output:
        arguments = json.loads(item.arguments)
        yield called(item.name, arguments)
        call = {"type": "function_call", "call_id": item.call_id, "name": item.name}
        given.append({**call, "arguments": item.arguments})
        result = {"type": "function_call_output", "call_id": item.call_id}
        given.append({**result, "output": weather(**arguments)})
    yield client.responses.create(input=given, **asked).output_text


def anthropic(url: str, stream: bool) -> Iterator[str]:
    from anthropic import Anthropic

    client = Anthropic(base_url=url, api_key=KEY, max_retries=0)
    tool = {"name": "weather", "description": "The weather.", "input_schema": PARAMETERS}
    asked: Any = {"model": MODEL, "max_tokens": 300, "tools": [tool]}
    if stream:
        with client.messages.stream(messages=MESSAGES, **asked) as events:
            made: Any = events.get_final_message()
    else:
        made = client.messages.create(messages=MESSAGES, **asked)
    results: list[Any] = []
    for block in made.content:
        yield called(block.name, block.input)
        result = {"type": "tool_result", "tool_use_id": block.id}
        results.append({**result, "content": weather(**block.input)})
    answer = {"role": "assistant", "content": made.content}
    messages: Any = [*MESSAGES, answer, {"role": "user", "content": results}]
    done: Any = client.messages.create(messages=messages, **asked)
    yield done.content[0].text


def ollama(url: str, stream: bool) -> Iterator[str]:
    from ollama import Client

    client: Any = Client(url)
    messages: list[Any] = list(MESSAGES)
    made = client.chat(MODEL, messages, tools=TOOLS, stream=stream)
    parts = [part.message for part in made] if stream else [made.message]
    results: list[Any] = []
    for part in parts:
        if part.tool_calls:
            messages.append(part)
        for call in part.tool_calls or ():
            yield called(call.function.name, call.function.arguments)
            content = weather(**call.function.arguments)
            results.append({"role": "tool", "tool_name": "weather", "content": content})
    done = client.chat(MODEL, messages + results, tools=TOOLS)
    yield done.message.content


def langchain_openai(url: str, stream: bool) -> Iterator[str]:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{url}/v1", api_key=KEY, model=MODEL, max_retries=0)
    return _langchain(chat, stream)


def langchain_ollama(url: str, stream: bool) -> Iterator[str]:
    from langchain_ollama import ChatOllama

    return _langchain(ChatOllama(base_url=url, model=MODEL), stream)


def _langchain(chat: Any, stream: bool) -> Iterator[str]:
    from langchain_core.messages import HumanMessage, ToolMessage

    bound = chat.bind_tools(TOOLS)
    messages: list[Any] = [HumanMessage(QUESTION)]
    if stream:
        made, *more = bound.stream(messages)
        for part in more:
            made += part
    else:
        made = bound.invoke(messages)
    messages.append(made)
    for call in made.tool_calls:
        yield called(call["name"], call["args"])
        messages.append(ToolMessage(weather(**call["args"]), tool_call_id=call["id"]))
    yield bound.invoke(messages).content


def llama_index_openai(url: str, stream: bool) -> Iterator[str]:
    from llama_index.llms.openai_like import OpenAILike

    chat = OpenAILike(
        api_base=f"{url}/v1",
        api_key=KEY,
        model=MODEL,
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
    )
    return _llama_index(chat, stream)


def llama_index_ollama(url: str, stream: bool) -> Iterator[str]:
    from llama_index.llms.ollama import Ollama

    return _llama_index(Ollama(base_url=url, model=MODEL), stream)


def _llama_index(chat: Any, stream: bool) -> Iterator[str]:
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool

    asked: Any = {"tools": [FunctionTool.from_defaults(weather)], "allow_parallel_tool_calls": True}
    messages = [ChatMessage(role="user", content=QUESTION)]
    if stream:
        *_, made = chat.stream_chat_with_tools(chat_history=messages, **asked)
    else:
        made = chat.chat_with_tools(chat_history=messages, **asked)
    messages.append(made.message)
    for call in chat.get_tool_calls_from_response(made):
        yield called(call.tool_name, call.tool_kwargs)
        more = {"tool_call_id": call.tool_id}
        content = weather(**call.tool_kwargs)
        messages.append(ChatMessage(role="tool", content=content, additional_kwargs=more))
    yield str(chat.chat_with_tools(chat_history=messages, **asked).message.content)


def litellm_openai(url: str, stream: bool) -> Iterator[str]:
    return _litellm(f"openai/{MODEL}", f"{url}/v1", stream)


def litellm_ollama(url: str, stream: bool) -> Iterator[str]:
    return _litellm(f"ollama_chat/{MODEL}", url, stream)


def _litellm(model: str, base: str, stream: bool) -> Iterator[str]:
    import litellm

    litellm.suppress_debug_info = True
    asked: Any = {"model": model, "api_base": base, "api_key": KEY, "tools": TOOLS}
    made: Any = litellm.completion(messages=MESSAGES, num_retries=0, stream=stream, **asked)
    if stream:
        made = litellm.stream_chunk_builder(list(made))
    message = made.choices[0].message
    messages = [*MESSAGES, message.model_dump(exclude_none=True)]
    for call in message.tool_calls:
        arguments = json.loads(call.function.arguments)
        yield called(call.function.name, arguments)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": weather(**arguments)})
    done: Any = litellm.completion(messages=messages, num_retries=0, **asked)
    yield done.choices[0].message.content


CLIENTS: dict[str, Callable[[str, bool], Iterator[str]]] = {
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
    _, name, mode, root = sys.argv
    try:
        print(", ".join(CLIENTS[name](root, mode == "stream")))
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " "))
