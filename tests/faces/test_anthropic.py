"""Anthropic's face, through Anthropic's own client, with a stand-in for the model."""

import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from serving_fakes import EOS, TOOL_TEMPLATE, FakeRunner, Root, expected, script

from hearth.common.errors import HearthError, Reason

PROMPT: Any = [{"role": "user", "content": "hi"}]
IDS = (256, *b"[user]hi", EOS, *b"[assistant]")


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


@pytest.fixture
def client(root: Root) -> Iterator[anthropic.Anthropic]:
    with client_of(root) as made:
        yield made


def client_of(root: Root) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=root.url, api_key="any", max_retries=0, timeout=20)


def answer(count: int) -> str:
    return bytes(expected(IDS, count)).decode()


def test_a_message(client: anthropic.Anthropic) -> None:
    made = client.messages.create(model="tiny", max_tokens=5, messages=PROMPT)
    assert (made.type, made.role, made.stop_reason) == ("message", "assistant", "max_tokens")
    assert [block.type for block in made.content] == ["text"]
    assert made.content[0].text == answer(5)  # type: ignore[union-attr]
    assert (made.usage.input_tokens, made.usage.output_tokens) == (len(IDS), 5)


def test_a_message_as_a_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="tiny", max_tokens=5, messages=PROMPT) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == answer(5)
    assert final.content[0].text == text  # type: ignore[union-attr]
    assert final.stop_reason == "max_tokens"
    assert (final.usage.input_tokens, final.usage.output_tokens) == (len(IDS), 5)


def test_the_order_of_events(client: anthropic.Anthropic) -> None:
    events = [
        event.type
        for event in client.messages.create(
            model="tiny", max_tokens=2, messages=PROMPT, stream=True
        )
    ]
    kinds = [kind for kind in events if kind not in ("ping", "content_block_delta")]
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_the_stop_sequence_is_named() -> None:
    runner = FakeRunner(script("one two three", "[user]hi|[assistant]"))
    with Root(runner, http=True) as root, client_of(root) as client:
        made = client.messages.create(
            model="tiny", max_tokens=20, messages=PROMPT, stop_sequences=["x", " tw"]
        )
        assert made.content[0].text == "one"  # type: ignore[union-attr]
        assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", " tw")
        made = client.messages.create(model="tiny", max_tokens=20, messages=PROMPT)
        assert (made.stop_reason, made.stop_sequence) == ("end_turn", None)


def test_count_tokens(client: anthropic.Anthropic) -> None:
    made = client.messages.count_tokens(model="tiny", messages=PROMPT, system="s")
    assert made.input_tokens == len(IDS) + len("[system]s|")


def test_a_conversation_with_everything_that_claude_code_sends() -> None:
    """System as blocks and inside of messages, tool calls and results, thinking, unknown fields."""
    cached = {"cache_control": {"type": "ephemeral"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "is_error": False}
    body = {
        "model": "tiny",
        "max_tokens": 1,
        "system": [{"type": "text", "text": "a", **cached}, {"type": "text", "text": "b"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "c", **cached}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "x", "signature": ""},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {**result, "content": [{"type": "text", "text": "d"}]},
                    {"type": "text", "text": "e"},
                ],
            },
            {"role": "system", "content": "f"},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "adaptive"},
        "context_management": {},
        "metadata": {"user_id": "x"},
    }
    with Root(http=True, chat_template=TOOL_TEMPLATE, context_size=512) as root:
        url = f"{root.url}/v1/messages?beta=true"
        got = httpx.post(url, json=body, headers={"anthropic-version": "2023-06-01"}, timeout=20)
        assert got.status_code == 200, got.text
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    text = (
        f"[tool]f[system]a\nb|[user]c|[assistant]<think>x</think>{call}|[tool]d|[user]e\n\nf|"
        "[assistant]"
    )
    seen = [EOS if letter == ord("|") else letter for letter in text.encode()]
    assert [token for batch in root.runner.batches for token in batch.tokens] == [256, *seen]


def test_models(client: anthropic.Anthropic) -> None:
    (listed,) = client.models.list()
    assert (listed.id, listed.type, listed.display_name) == ("tiny", "model", "tiny")
    assert client.models.retrieve("tiny").created_at.year >= 2026


def test_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="claude-9", max_tokens=1, messages=PROMPT)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    long: Any = [{"role": "user", "content": "a" * 100}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 64 max"):
        client.messages.create(model="tiny", max_tokens=1, messages=long)
    image: Any = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        client.messages.create(model="tiny", max_tokens=1, messages=image)
    with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
        client.messages.create(
            model="tiny", max_tokens=1, messages=PROMPT, tool_choice={"type": "any"}
        )


def test_not_ready_is_overloaded() -> None:
    with Root(http=True) as root, client_of(root) as client:
        lost = HearthError(Reason.WORKER_LOST, "worker x:1 is lost")
        root.engine.suspend(lost, refuse=True).wait(5)
        with pytest.raises(anthropic.InternalServerError) as error:
            client.messages.create(model="tiny", max_tokens=1, messages=PROMPT)
        assert error.value.status_code == 529
        assert error.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
        assert error.value.response.headers["retry-after"]
        assert error.value.request_id


def test_a_stream_that_fails() -> None:
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, http=True) as root, client_of(root) as client:
        stream = client.messages.create(model="tiny", max_tokens=9, messages=PROMPT, stream=True)
        runner.entered.wait(10)
        runner.fail_with = HearthError(Reason.WORKER_UNFIT, "numbers of x:1 are wrong")
        assert runner.gate is not None
        runner.gate.set()
        with pytest.raises(anthropic.APIStatusError, match="numbers of x:1 are wrong"):
            list(stream)


def test_claude_code_looks_whether_anyone_is_there(root: Root) -> None:
    assert httpx.head(root.url).status_code == 200
