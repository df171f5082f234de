"""Tools and reasoning in every face, through the clients' own libraries, with a scripted model."""

import json
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from serving_fakes import EOS, TOOL_TEMPLATE, FakeRunner, Root, prompt_of, says

from hearth.root.api.http import limits

QUESTION: Any = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]
BERN, ROME = '{"city": "Bern"}', '{"city": "Rome"}'


def call_text(arguments: str, name: str = "weather") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ANSWER = f"<think>\nI look.\n</think>\n\nOne moment.\n{call_text(BERN)}\n{call_text(ROME)}"


def root_of(text: str = ANSWER, template: str = TOOL_TEMPLATE, **options: Any) -> Root:
    options = {"context_size": 2048, "max_pages": 2048} | options
    return Root(FakeRunner(says(text)), http=True, chat_template=template, **options)


def openai_client(root: Root) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{root.url}/v1", api_key="x", max_retries=0, timeout=20)


def test_openai_chat() -> None:
    with root_of() as root, openai_client(root) as client:
        made: Any = client.chat.completions.create(model="tiny", messages=QUESTION, tools=TOOLS)
        (choice,) = made.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "One moment."
        assert choice.message.model_dump()["reasoning_content"] == "I look."
        first, second = choice.message.tool_calls
        assert first.type == second.type == "function"
        assert (first.function.name, first.function.arguments) == ("weather", BERN)
        assert second.function.arguments == ROME
        assert first.id.startswith("call_")
        assert first.id != second.id
        assert "[tool]weather" in prompt_of(root)


def test_openai_chat_as_a_stream() -> None:
    with root_of() as root, openai_client(root) as client:
        with client.chat.completions.stream(model="tiny", messages=QUESTION, tools=TOOLS) as stream:
            thought = "".join(
                event.chunk.choices[0].delta.model_dump().get("reasoning_content") or ""
                for event in stream
                if event.type == "chunk" and event.chunk.choices
            )
            final: Any = stream.get_final_completion().choices[0]
    assert thought == "I look."
    assert final.finish_reason == "tool_calls"
    assert final.message.content == "One moment."
    calls = final.message.tool_calls or ()
    assert [call.function.arguments for call in calls] == [BERN, ROME]
    assert [call.function.name for call in calls] == ["weather"] * 2


def test_one_call_at_most() -> None:
    with root_of() as root, openai_client(root) as client:
        made: Any = client.chat.completions.create(
            model="tiny", messages=QUESTION, tools=TOOLS, parallel_tool_calls=False
        )
        assert len(made.choices[0].message.tool_calls or ()) == 1


def test_no_tools_and_tool_choice_none() -> None:
    text = call_text(BERN)
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        with root_of(text) as root, openai_client(root) as client:
            options: Any = more
            made: Any = client.chat.completions.create(model="tiny", messages=QUESTION, **options)
            assert made.choices[0].message.content == text
            assert made.choices[0].finish_reason == "stop"
            assert "[tool]" not in prompt_of(root)


def test_a_call_that_is_cut_off_is_text() -> None:
    with root_of(call_text(BERN)) as root, openai_client(root) as client:
        made: Any = client.chat.completions.create(
            model="tiny", messages=QUESTION, tools=TOOLS, max_tokens=30
        )
        assert made.choices[0].finish_reason == "length"
        assert made.choices[0].message.content == call_text(BERN)[:30]
        assert not made.choices[0].message.tool_calls


def test_openai_responses() -> None:
    tools: Any = [{"type": "function", **FUNCTION, "strict": False}, {"type": "web_search"}]
    with root_of() as root, openai_client(root) as client:
        made: Any = client.responses.create(model="tiny", input="hi", tools=tools)
        kinds = [item.type for item in made.output]
        assert kinds == ["reasoning", "message", "function_call", "function_call"]
        reasoning, _, first, second = made.output
        assert reasoning.type == "reasoning"
        assert reasoning.summary[0].text == "I look."
        assert made.output_text == "One moment."
        assert first.type == second.type == "function_call"
        assert (first.name, first.arguments, second.arguments) == ("weather", BERN, ROME)
        assert made.usage is not None
        assert 0 < made.usage.output_tokens_details.reasoning_tokens < made.usage.output_tokens
        with client.responses.stream(model="tiny", input="hi", tools=tools) as stream:
            events: list[Any] = list(stream)
            final: Any = stream.get_final_response()
    assert [item.type for item in final.output] == kinds
    names = [event.type for event in events]
    assert names.count("response.output_item.added") == 4
    assert names.count("response.output_item.done") == 4
    assert "response.reasoning_summary_text.delta" in names
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [BERN, ROME]
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(numbers)


def test_anthropic() -> None:
    tools: Any = [{"name": "weather", "description": "The weather.", "input_schema": PARAMETERS}]
    with root_of() as root, anthropic.Anthropic(base_url=root.url, api_key="x") as client:
        options: Any = {
            "model": "tiny",
            "max_tokens": 500,
            "messages": QUESTION,
            "tools": tools,
            "tool_choice": {"type": "auto"},
        }
        made: Any = client.messages.create(**options)
        with client.messages.stream(**options) as stream:
            streamed: Any = stream.get_final_message()
    for message in [made, streamed]:
        assert message.stop_reason == "tool_use"
        thought, text, first, second = message.content
        assert thought.type == "thinking"
        assert thought.thinking == "I look."
        assert text.type == "text"
        assert text.text == "One moment."
        assert first.type == second.type == "tool_use"
        assert (first.name, first.input, second.input) == (
            "weather",
            {"city": "Bern"},
            {"city": "Rome"},
        )
        assert first.id.startswith("toolu_")


def test_ollama() -> None:
    with root_of() as root:
        client = ollama.Client(host=root.url, timeout=20)
        made: Any = client.chat(model="tiny", messages=QUESTION, tools=TOOLS)
        parts = [*client.chat(model="tiny", messages=QUESTION, tools=TOOLS, stream=True)]
        shown = client.show("tiny")
    assert made.message.content == "One moment."
    assert made.message.thinking == "I look."
    calls = made.message.tool_calls or ()
    assert [call.function.arguments for call in calls] == [{"city": "Bern"}, {"city": "Rome"}]
    assert "".join(part.message.content or "" for part in parts) == "One moment."
    assert "".join(part.message.thinking or "" for part in parts) == "I look."
    streamed = [call for part in parts for call in part.message.tool_calls or ()]
    assert [call.function.arguments for call in streamed] == [{"city": "Bern"}, {"city": "Rome"}]
    assert parts[-1].done_reason == "stop"
    assert shown.capabilities == ["completion", "tools", "thinking"]


def test_results_of_tools_come_back_to_the_model() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": BERN}}
    messages: Any = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    with root_of("Sunny.") as root, openai_client(root) as client:
        made: Any = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
        assert made.choices[0].message.content == "Sunny."
        text = prompt_of(root)
    assert f'<tool_call>{{"name": "weather", "arguments": {BERN}}}</tool_call>' in text
    assert text.endswith("[tool]sunny")


def test_a_template_without_tools() -> None:
    """Tools are described in the system message; calls and results become text."""
    plain = (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('role') }}"
        "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    )
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": BERN}}
    messages: Any = [
        {"role": "system", "content": "Be kind."},
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    with root_of(call_text(ROME), plain) as root, openai_client(root) as client:
        made: Any = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
        (found,) = made.choices[0].message.tool_calls
        assert found.function.arguments == ROME
        text = prompt_of(root)
    assert text.startswith("[system]Be kind.\n\nYou can call these functions")
    assert json.dumps(FUNCTION) in text
    assert call_text(BERN) in text
    assert text.endswith("[user]<tool_response>\nsunny\n</tool_response>")


def test_reasoning_that_the_template_opens() -> None:
    opening = TOOL_TEMPLATE.replace("[assistant]{% endif %}", "[assistant]<think>\n{% endif %}")
    assert opening != TOOL_TEMPLATE

    def next_token(history: tuple[int, ...]) -> int:
        said = bytes(token for token in history if token < 256).partition(b"<think>\n")[2]
        answer = b"Hm.</think>\n\nYes"
        return answer[len(said)] if len(said) < len(answer) else EOS

    with (
        Root(FakeRunner(next_token), http=True, chat_template=opening, context_size=512) as root,
        openai_client(root) as client,
    ):
        made: Any = client.chat.completions.create(model="tiny", messages=QUESTION)
        message = made.choices[0].message
        assert (message.content, message.model_dump()["reasoning_content"]) == ("Yes", "Hm.")


THINKING = "{% if enable_thinking is defined %}T{{ enable_thinking }}{% endif %}"
EFFORT = "{% if reasoning_effort is defined %}E{{ reasoning_effort }}{% endif %}"


@pytest.mark.parametrize(
    ("path", "more", "expected"),
    [
        ("/v1/chat/completions", {"reasoning_effort": "minimal"}, "TTrueElow"),
        ("/v1/chat/completions", {"reasoning_effort": "none"}, "TFalse"),
        ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": 5}}, "T5"),
        ("/v1/responses", {"input": "hi", "reasoning": {"effort": "high"}}, "TTrueEhigh"),
        ("/v1/messages", {"max_tokens": 5, "thinking": {"type": "disabled"}}, "TFalse"),
        ("/v1/messages", {"max_tokens": 5, "thinking": {"type": "adaptive"}}, "TTrue"),
        ("/api/chat", {"model": "tiny", "think": False}, "TFalse"),
        ("/api/chat", {"model": "tiny", "think": "low"}, "TTrueElow"),
        ("/api/chat", {"model": "tiny"}, ""),
    ],
)
def test_the_wish_for_reasoning_reaches_the_template(
    path: str, more: dict[str, Any], expected: str
) -> None:
    template = TOOL_TEMPLATE.replace("{{ bos_token }}", f"{{{{ bos_token }}}}{THINKING}{EFFORT}.")
    with root_of("Yes", template) as root:
        body = {"messages": QUESTION, "stream": False, **more}
        got = httpx.post(f"{root.url}{path}", json=body, timeout=20)
        assert got.status_code == 200, got.text
        assert prompt_of(root).startswith(f"{expected}.")


def test_what_is_refused() -> None:
    def refused(path: str, **more: Any) -> str:
        body = {"model": "tiny", "messages": QUESTION, "max_tokens": 5, **more}
        got = httpx.post(f"{root.url}{path}", json=body, timeout=20)
        assert got.status_code == 400, got.text
        problem = got.json()["error"]
        return problem if isinstance(problem, str) else problem["message"]

    named = [{"type": "function", "function": {"name": "a b"}}]
    with root_of(template="{{ bos_token }}[assistant]") as root:
        chat = "/v1/chat/completions"
        assert "tools[0].function.name is 'a b'" in refused(chat, tools=named)
        assert "at most 512" in refused(chat, tools=TOOLS * 513)
        assert "tools is" in refused(chat, tools="x")
        assert "tools[0].input_schema is a list" in refused(
            "/v1/messages", tools=[{"name": "f", "input_schema": []}]
        )
        assert "does not support thinking" in refused("/api/chat", think=True)


def test_a_template_that_fails_names_its_line() -> None:
    with root_of(template="{{ bos_token }}\n{% if %}") as root:
        body = {"messages": QUESTION, "tools": TOOLS}
        got = httpx.post(f"{root.url}/v1/chat/completions", json=body, timeout=20)
        assert got.status_code == 400
        assert "line 2" in got.json()["error"]["message"]


def forced(path: str, template: str = TOOL_TEMPLATE, **more: Any) -> Any:
    """The answer of a model of random letters whose answer must be a call."""
    with Root(http=True, chat_template=template, context_size=1024, max_pages=1024) as root:
        body = {"model": "tiny", "messages": QUESTION, "max_tokens": 400, "stream": False, **more}
        got = httpx.post(f"{root.url}{path}", json=body, timeout=60)
    assert got.status_code == 200, got.text
    return got.json()


ENUM = {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}}, "required": ["city"]}
ENUM_TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": ENUM}}
    for name in ("weather", "time")
]


def test_required_and_named_calls_are_forced() -> None:
    chat = "/v1/chat/completions"
    named = {"type": "function", "function": {"name": "time"}}
    for choice, names in (("required", {"weather", "time"}), (named, {"time"})):
        made = forced(chat, tools=ENUM_TOOLS, tool_choice=choice, parallel_tool_calls=False)
        (choice_,) = made["choices"]
        assert choice_["finish_reason"] == "tool_calls"
        (call,) = choice_["message"]["tool_calls"]
        assert call["function"]["name"] in names
        assert json.loads(call["function"]["arguments"])["city"] in ("Bern", "Rome")
    tools = [{"name": "time", "input_schema": ENUM}]
    made = forced("/v1/messages", tools=tools, tool_choice={"type": "tool", "name": "time"})
    assert made["stop_reason"] == "tool_use"
    assert made["content"][0]["input"]["city"] in ("Bern", "Rome")
    flat = [{"type": "function", "name": "time", "parameters": ENUM}]
    more: dict[str, Any] = {"input": "hi", "tool_choice": "required", "parallel_tool_calls": False}
    made = forced("/v1/responses", tools=flat, **more)
    assert made["output"][0]["name"] == "time"


def test_choices_that_cannot_be_kept() -> None:
    with root_of() as root:
        for path, more, problem in (
            ("/v1/chat/completions", {"tool_choice": "required"}, "there are no tools"),
            ("/v1/chat/completions", {"tools": TOOLS, "tool_choice": "perhaps"}, "'perhaps'"),
            (
                "/v1/messages",
                {"max_tokens": 5, "tool_choice": {"type": "tool", "name": "x"}},
                "'x', which is not among the tools",
            ),
        ):
            body = {"model": "tiny", "messages": QUESTION, **more}
            got = httpx.post(f"{root.url}{path}", json=body, timeout=20)
            assert got.status_code == 400
            assert problem in got.json()["error"]["message"]


EACH = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
CALLS = {
    "tags": (
        "<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments.items() %}"
        "<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}"
        "</function>\n</tool_call>"
    ),
    "a name and JSON": "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}",
    "channels": (
        " to=functions.{{ f.name }}<|channel|>commentary json<|message|>"
        "{{ f.arguments | tojson }}<|call|>"
    ),
}


@pytest.mark.parametrize("calls", CALLS)
def test_forms_of_forced_calls(calls: str) -> None:
    template = TOOL_TEMPLATE.partition("{% for c in")[0] + EACH + CALLS[calls]
    template += "{% endfor %}{{ eos_token }}{% endfor %}[assistant]"
    more: dict[str, Any] = {"tools": ENUM_TOOLS, "parallel_tool_calls": False}
    made = forced("/v1/chat/completions", template, tool_choice="required", **more)
    (call,) = made["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] in ("weather", "time")
    assert json.loads(call["function"]["arguments"])["city"] in ("Bern", "Rome")
    assert made["choices"][0]["message"]["content"] is None


def test_strict_arguments() -> None:
    """Text is free up to the mark of a call, which then fits its schema."""
    text = 'Yes. <tool_call>{"name": "weather", "arguments": {"town": 5}}</tool_call>'
    tools = [{"type": "function", "function": {**ENUM_TOOLS[0]["function"], "strict": True}}]
    with root_of(text) as root, openai_client(root) as client:
        options: Any = {"tools": tools, "max_tokens": 300}
        made: Any = client.chat.completions.create(model="tiny", messages=QUESTION, **options)
    message = made.choices[0].message
    assert message.content == "Yes."
    (call,) = message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Rome")


def test_strict_arguments_of_tools_in_a_namespace() -> None:
    text = '<tool_call>{"name": "home.weather", "arguments": {"town": 5}}</tool_call>'
    inner = {"type": "function", **ENUM_TOOLS[0]["function"], "strict": True}
    tools = [{"type": "namespace", "name": "home", "tools": [inner]}]
    with root_of(text) as root:
        body = {"model": "tiny", "input": "How warm?", "tools": tools, "max_output_tokens": 300}
        made = httpx.post(f"{root.url}/v1/responses", json=body, timeout=60).json()
    (call,) = (item for item in made["output"] if item["type"] == "function_call")
    assert json.loads(call["arguments"])["city"] in ("Bern", "Rome")


def test_strict_tools_are_accepted_where_the_form_of_calls_cannot_be_forced() -> None:
    """As other servers have it: the call is read as the model writes it, else as it must be."""
    text = '<|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>'
    template = "{# <|tool_call>call: #}" + TOOL_TEMPLATE
    tools = [{"type": "function", "function": {**ENUM_TOOLS[0]["function"], "strict": True}}]
    either = {"anyOf": [{"type": "object"}, {"type": "object", "required": ["a"]}]}
    unclear = {"type": "function", "function": {"name": "either", "parameters": either}}
    with root_of(text, template) as root, openai_client(root) as client:
        for given, city in ((tools, "Bern"), ([*tools, unclear], "Oslo")):
            options: Any = {"tools": given, "max_tokens": 300}
            made: Any = client.chat.completions.create(model="tiny", messages=QUESTION, **options)
            (call,) = made.choices[0].message.tool_calls
            assert json.loads(call.function.arguments) == {"city": city}


def test_a_long_call_comes_whole_and_the_client_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.05)
    runner = FakeRunner(says(call_text(BERN)), seconds=0.01)
    with Root(runner, http=True, chat_template=TOOL_TEMPLATE, context_size=512) as root:
        body = {"messages": QUESTION, "tools": TOOLS, "stream": True}
        got = httpx.post(f"{root.url}/v1/chat/completions", json=body, timeout=60)
    events = [json.loads(line[6:]) for line in got.text.split("\n") if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    first = next(index for index, delta in enumerate(deltas) if "tool_calls" in delta)
    # The role, then at least one event without contents.
    assert deltas[1:first]
    assert all(delta == {"content": ""} for delta in deltas[1:first])
    named, arguments = (delta["tool_calls"][0] for delta in deltas[first : first + 2])
    assert named["function"] == {"name": "weather", "arguments": ""}
    assert (named["index"], named["type"]) == (0, "function")
    assert arguments == {"index": 0, "function": {"arguments": BERN}}


def test_functions_from_before_tools() -> None:
    """`functions` and `function_call`, with the answer in their shape, and a result."""
    body: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "functions": [FUNCTION]}
    with root_of() as root, openai_client(root) as client:
        made: Any = client.chat.completions.create(**body, function_call="auto")
        (choice,) = made.choices
        assert choice.finish_reason == "function_call"
        assert choice.message.tool_calls is None
        assert choice.message.function_call.name == "weather"
        assert json.loads(choice.message.function_call.arguments) == {"city": "Bern"}
        assert "weather" in prompt_of(root)
        arguments, finish = "", ""
        for part in client.chat.completions.create(**body, stream=True):
            call = part.choices[0].delta.function_call
            arguments += (call.arguments or "") if call else ""
            finish = part.choices[0].finish_reason or finish
        assert json.loads(arguments) == {"city": "Bern"}
        assert finish == "function_call"
        answered = [
            *QUESTION,
            choice.message.model_dump(exclude_none=True),
            {"role": "function", "name": "weather", "content": "dry in Bern"},
        ]
        client.chat.completions.create(**(body | {"messages": answered}))
        tokens = [token for batch in root.runner.batches for token in batch.tokens]
        assert b"dry in Bern" in bytes(token for token in tokens if token < 256)
        none: Any = client.chat.completions.create(**body, function_call="none")
        assert none.choices[0].message.function_call is None
        wrongs: list[Any] = [{"name": "other"}, "often"]
        for wrong in wrongs:
            with pytest.raises(openai.BadRequestError, match="function_call"):
                client.chat.completions.create(**body, function_call=wrong)


def test_calls_in_ollama_s_streams_are_numbered() -> None:
    """As LiteLLM reads them: beside the function."""
    body = {"model": "tiny", "messages": QUESTION, "tools": TOOLS}
    with root_of() as root:
        lines = httpx.post(f"{root.url}/api/chat", json=body, timeout=20).text.splitlines()
    calls = [c for line in lines for c in json.loads(line)["message"].get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    assert [call["function"]["index"] for call in calls] == [0, 1]
