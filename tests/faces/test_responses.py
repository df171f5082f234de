"""OpenAI's responses, through OpenAI's own client, with a stand-in for the model."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serving_fakes import EOS, TOOL_TEMPLATE, FakeRunner, Root, expected, script

from hearth.common.errors import HearthError, Reason
from hearth.root.api.http import limits

IDS = (256, *b"[user]hi", EOS, *b"[assistant]")


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


@pytest.fixture
def client(root: Root) -> Iterator[openai.OpenAI]:
    with client_of(root) as made:
        yield made


def client_of(root: Root) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{root.url}/v1", api_key="any", max_retries=0, timeout=20)


def test_a_response(client: openai.OpenAI) -> None:
    made = client.responses.create(model="tiny", input="hi", max_output_tokens=5)
    assert made.output_text == bytes(expected(IDS, 5)).decode()
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (len(IDS), 5)
    assert made.usage.total_tokens == len(IDS) + 5


def test_a_response_as_a_stream() -> None:
    runner = FakeRunner(script("hello you", "[user]hi|[assistant]"))
    with Root(runner, http=True) as root, client_of(root) as client:
        with client.responses.stream(model="tiny", input="hi") as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert final.output_text == "hello you"
        assert final.status == "completed"
        events = list(client.responses.create(model="tiny", input="hi", stream=True))
    numbers = [event.sequence_number for event in events]
    assert numbers == list(range(len(events)))
    once = list(dict.fromkeys(kinds))
    assert once == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_a_conversation_of_items() -> None:
    """As Codex sends one: developer messages, calls, outputs, reasoning, unknown fields."""
    text = {"type": "input_text", "text": "b"}
    body: dict[str, Any] = {
        "model": "tiny",
        "instructions": None,
        "input": [
            {"type": "message", "role": "developer", "content": [{**text, "text": "a"}]},
            {"type": "message", "role": "developer", "content": [text]},
            {"role": "user", "content": "c"},
            {"type": "reasoning", "summary": [], "encrypted_content": None},
            {"type": "function_call", "name": "f", "arguments": '{"a":1}', "call_id": "c1"},
            {"type": "function_call_output", "call_id": "c1", "output": [text]},
        ],
        "max_output_tokens": 1,
        "tools": [{"type": "function", "name": "f"}, {"type": "web_search"}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "store": False,
        "include": [],
        "prompt_cache_key": "x",
        "client_metadata": {},
    }
    with Root(http=True, chat_template=TOOL_TEMPLATE, context_size=512) as root:
        got = httpx.post(f"{root.url}/v1/responses", json=body, timeout=20)
        assert got.status_code == 200, got.text
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    prompt = f"[tool]f[system]a\n\nb|[user]c|[assistant]{call}|[tool]b|[assistant]"
    seen = [EOS if letter == ord("|") else letter for letter in prompt.encode()]
    assert root.runner.batches[0].tokens == (256, *seen)


def test_what_is_refused(client: openai.OpenAI) -> None:
    def refused(**body: Any) -> str | None:
        with pytest.raises(openai.BadRequestError) as error:
            client.responses.create(**({"model": "tiny", "input": "hi"} | body))
        return error.value.param

    assert refused(previous_response_id="resp_1") == "previous_response_id"
    assert refused(input=[]) == "input"
    assert refused(input=[{"type": "item_reference", "id": "x"}]) == "input[0].type"
    image = {"type": "input_image", "image_url": "http://x"}
    assert refused(input=[{"role": "user", "content": [image]}]) == "input[0].content[0]"
    form = {"type": "json_schema", "name": "x", "schema": {"type": "strin"}}
    assert refused(text={"format": form}) == "text.format.schema"
    assert refused(tool_choice="required") == "tool_choice"
    assert refused(metadata={str(number): "" for number in range(17)}) == "metadata"
    assert refused(metadata={"a" * 65: ""}) == "metadata"
    assert refused(metadata={"a": "b" * 513}) == "metadata.a"
    assert refused(metadata={"a": 1}) == "metadata.a"


def test_metadata_comes_back(client: openai.OpenAI) -> None:
    notes = {f"{number:064}": "b" * 512 for number in range(16)}
    made = client.responses.create(model="tiny", input="hi", max_output_tokens=1, metadata=notes)
    assert made.metadata == notes


def test_heartbeats_repeat_no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.05)
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, http=True) as root, client_of(root) as client:
        stream = iter(
            client.responses.create(
                model="tiny", input="hi", instructions="a", max_output_tokens=1, stream=True
            )
        )
        begun = [next(stream) for _ in range(4)]
        assert begun[0].type == "response.created"
        assert begun[0].response.instructions == "a"
        for _ in range(2):
            beat = next(stream)
            assert beat.type == "response.in_progress"
            assert beat.response.instructions is None
        assert runner.gate is not None
        runner.gate.set()
        last = list(stream)[-1]
    assert last.type == "response.incomplete"
    assert last.response.instructions == "a"


def test_a_stream_that_fails() -> None:
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, http=True) as root, client_of(root) as client:
        stream = client.responses.create(model="tiny", input="hi", stream=True)
        runner.entered.wait(10)
        runner.fail_with = HearthError(Reason.WORKER_UNFIT, "numbers of x:1 are wrong")
        assert runner.gate is not None
        runner.gate.set()
        last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message == "numbers of x:1 are wrong"


def test_log_probabilities() -> None:
    """By `include` or `top_logprobs`; a stream has the same, token by token."""
    asked: Any = {"model": "tiny", "input": "hi", "max_output_tokens": 3, "top_logprobs": 2}
    with Root(http=True) as root:
        client = openai.OpenAI(base_url=f"{root.url}/v1", api_key="x", max_retries=0, timeout=20)
        with client:
            made: Any = client.responses.create(**asked)
            scores = made.output[0].content[0].logprobs
            assert "".join(score.token for score in scores) == made.output_text
            assert [len(score.top_logprobs) for score in scores] == [2, 2, 2]
            assert all(score.logprob == score.top_logprobs[0].logprob for score in scores)
            with client.responses.stream(**asked) as stream:
                events: Any = list(stream)
            parts = [event for event in events if event.type == "response.output_text.delta"]
            assert [entry.token for part in parts for entry in part.logprobs] == [
                score.token for score in scores
            ]
            del asked["top_logprobs"]
            assert client.responses.create(**asked).output[0].content[0].logprobs == []
            made = client.responses.create(**asked, include=["message.output_text.logprobs"])
            assert [score.top_logprobs for score in made.output[0].content[0].logprobs] == [[]] * 3


def test_the_tokens_of_a_prompt_are_counted() -> None:
    with Root(http=True) as root:
        for prefix in ("", "/v1"):
            asked = {"input": "hi", "max_output_tokens": 1}
            made = httpx.post(f"{root.url}{prefix}/responses", json=asked).json()
            counted = httpx.post(f"{root.url}{prefix}/responses/input_tokens", json=asked).json()
            tokens = made["usage"]["input_tokens"]
            assert counted == {"object": "response.input_tokens", "input_tokens": tokens}
            chat = {"messages": [{"role": "user", "content": "hi"}]}
            path = f"{root.url}{prefix}/chat/completions/input_tokens"
            assert httpx.post(path, json=chat).json()["input_tokens"] == tokens


@pytest.mark.parametrize(
    "field", [{"previous_response_id": "resp_1"}, {"conversation": "c"}, {"prompt": {"id": "p"}}]
)
def test_what_would_have_been_stored_is_refused(field: Any) -> None:
    with Root(http=True) as root:
        got = httpx.post(f"{root.url}/v1/responses", json={"input": "hi", **field})
    (name,) = field
    assert (got.status_code, got.json()["error"]["param"]) == (400, name)
