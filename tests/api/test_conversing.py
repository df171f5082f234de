"""Tools, reasoning and structure over gRPC, through the client SDK, with a scripted model."""

import asyncio
import json
from typing import Any

import grpc
import pytest
from serving_fakes import TOOL_TEMPLATE, FakeRunner, Root, prompt_of, says

from hearth.client import AsyncClient, Client, FinishReason, InvalidArgument, ToolCall
from hearth.v1 import root_pb2

QUESTION: Any = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}}}
WEATHER: Any = {
    "name": "weather",
    "description": "The weather.",
    "parameters": {**PARAMETERS, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
ANSWER = f"<think>\nI look.\n</think>\n\nOne moment.\n{CALL}\n{CALL}"


def root_of(text: str = ANSWER) -> Root:
    runner = FakeRunner(says(text))
    return Root(runner, chat_template=TOOL_TEMPLATE, context_size=2048, max_pages=2048)


def test_chat_gives_text_reasoning_and_calls_apart() -> None:
    thoughts: list[str] = []
    with root_of() as root, Client(root.address) as client:
        stream = client.chat(QUESTION, tools=[WEATHER], on_reasoning=thoughts.append)
        with stream:
            text = "".join(stream)
        assert text.strip() == "One moment."
        assert stream.reasoning.strip() == "I look."
        assert "".join(thoughts) == stream.reasoning
        first, second = stream.tool_calls
        assert (first.name, first.values) == ("weather", {"city": "Bern"})
        assert first.id
        assert first.id != second.id
        assert stream.finish_reason is FinishReason.EOS
        assert "[tool]weather" in prompt_of(root)


def test_the_same_with_asyncio_and_one_call() -> None:
    async def asked(address: str) -> None:
        async with AsyncClient(address) as client:
            stream = client.chat(QUESTION, tools=[WEATHER], one_call=True)
            async with stream:
                text = "".join([piece async for piece in stream])
            assert text.strip() == "One moment."
            assert [call.values for call in stream.tool_calls] == [{"city": "Bern"}]

    with root_of() as root:
        asyncio.run(asked(root.address))


def test_a_conversation_with_calls_and_results_goes_on() -> None:
    with root_of("It is warm.") as root, Client(root.address) as client:
        call = ToolCall("call_1", "weather", '{"city": "Rome"}')
        asked = {"role": "assistant", "content": "", "tool_calls": [call], "reasoning": "I ask."}
        result = {"role": "tool", "content": "31 C", "tool_call_id": "call_1"}
        with client.chat([*QUESTION, asked, result], tools=[WEATHER]) as stream:
            assert "".join(stream) == "It is warm."
        assert stream.message == {"role": "assistant", "content": "It is warm."}
        prompt = prompt_of(root)
    assert "<think>I ask.</think>" in prompt
    assert '{"name": "weather", "arguments": {"city": "Rome"}}' in prompt
    assert "[tool]31 C" in prompt


@pytest.mark.parametrize("choice", ["required", "weather"])
def test_forced_calls(choice: str) -> None:
    with root_of("I will not.") as root, Client(root.address) as client:
        options: Any = {"tools": [WEATHER], "tool_choice": choice, "one_call": True}
        with client.chat(QUESTION, **options) as stream:
            assert "".join(stream) == ""
        (call,) = stream.tool_calls
    assert call.name == "weather"
    assert call.values["city"] in ("Bern", "Rome")


def test_strict_arguments() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"town": 5}}</tool_call>'
    with root_of(text) as root, Client(root.address) as client:
        options: Any = {"tools": [{**WEATHER, "strict": True}], "max_tokens": 300}
        with client.chat(QUESTION, **options) as stream:
            list(stream)
    (call,) = stream.tool_calls
    assert call.values["city"] in ("Bern", "Rome")


def test_without_a_wish_reasoning_and_calls_are_text() -> None:
    with root_of() as root, Client(root.address) as client:
        assert client.generate_text(messages=QUESTION) == ANSWER
        none: Any = {"tools": [WEATHER], "tool_choice": "none"}
        with client.chat(QUESTION, **none) as stream:
            assert CALL in "".join(stream)
        assert stream.tool_calls == []


def test_a_schema_holds_the_answer_behind_the_reasoning() -> None:
    with root_of('<think>a { b</think>{"city": "Oslo"}') as root, Client(root.address) as client:
        with client.chat(QUESTION, json_schema=WEATHER["parameters"]) as stream:
            text = "".join(stream)
    assert json.loads(text)["city"] in ("Bern", "Rome")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tools": [{"name": "a b"}]}, r"tools\[0\].name is 'a b'"),
        ({"tools": [{"name": "f", "parameters": "[1"}]}, r"tools\[0\].parameters is not"),
        ({"tools": [{"name": "f"}, {"name": "f"}]}, "two tools of the name 'f'"),
        ({"tools": [{"name": "f"}] * 513}, "513 tools; at most 512"),
        ({"tools": [{"name": "f"}], "tool_choice": "g"}, "'g', which is not among the tools"),
        ({"tool_choice": "required"}, "there are no tools"),
    ],
)
def test_tools_that_are_refused(options: Any, problem: str) -> None:
    with root_of() as root, Client(root.address) as client:
        with pytest.raises(InvalidArgument, match=problem):
            list(client.chat(QUESTION, **options))


def test_tools_need_a_conversation() -> None:
    with root_of() as root, Client(root.address) as client:
        with pytest.raises(InvalidArgument, match="needs a conversation"):
            list(client.generate("hi", tools=[WEATHER]))


def test_calls_of_earlier_turns_that_are_not_json_are_refused() -> None:
    broken = {"role": "assistant", "content": "", "tool_calls": [ToolCall("1", "f", "[1")]}
    with root_of() as root, Client(root.address) as client:
        with pytest.raises(InvalidArgument, match="not a JSON object"):
            list(client.chat([*QUESTION, broken, *QUESTION]))


def test_messages_of_other_languages() -> None:
    """The protocol itself, without the client's own shapes."""
    request = root_pb2.GenerateRequest()
    request.conversation.messages.add(role="user", content="hi")
    request.tools.add(name="weather", parameters=json.dumps(PARAMETERS))
    request.tool_choice.required = True
    with root_of() as root, grpc.insecure_channel(root.address) as channel:
        generate = channel.unary_stream(
            "/hearth.v1.RootService/Generate",
            request_serializer=root_pb2.GenerateRequest.SerializeToString,
            response_deserializer=root_pb2.GenerateResponse.FromString,
        )
        calls = [
            call for response in generate(request, timeout=60) for call in response.delta.tool_calls
        ]
    assert {call.name for call in calls} == {"weather"}
    assert all(isinstance(json.loads(call.arguments), dict) for call in calls)
