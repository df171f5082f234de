"""OpenAI's face, through OpenAI's own client, with a stand-in for the model."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serving_fakes import EOS, FakeRunner, Root, expected, letters, script

from hearth.common import system
from hearth.v1 import root_pb2

PROMPT: Any = [{"role": "user", "content": "hi"}]
# What the template of serving_fakes makes of it.
IDS = (256, *b"[user]hi", EOS, *b"[assistant]")


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


@pytest.fixture
def client(root: Root) -> Iterator[openai.OpenAI]:
    with client_of(root) as made:
        yield made


def client_of(root: Root, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{root.url}/v1", api_key=key, max_retries=0, timeout=20)


def answer(count: int, prompt: tuple[int, ...] = IDS) -> str:
    return bytes(expected(prompt, count)).decode()


def test_chat(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="tiny", messages=PROMPT, max_tokens=5)
    assert made.object == "chat.completion"
    # A text, as OpenAI's document has it.
    assert made.system_fingerprint == f"hearth-{system.version()}"
    assert made.choices[0].message.role == "assistant"
    assert made.choices[0].message.content == answer(5)
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(IDS), 5)
    assert made.usage.total_tokens == len(IDS) + 5


def test_chat_as_a_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=PROMPT,
            max_completion_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[0].choices[0].delta.role == "assistant"
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == answer(5)
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].finish_reason == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert chunks[-1].choices == []
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(IDS), 5)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_stream_helper() -> None:
    runner = FakeRunner(script("hello you", "[user]hi|[assistant]"))
    with Root(runner, http=True) as root, client_of(root) as client:
        with client.chat.completions.stream(model="tiny", messages=PROMPT) as stream:
            stream.until_done()
            final = stream.get_final_completion()
    assert final.choices[0].message.content == "hello you"
    assert final.choices[0].finish_reason == "stop"


def test_stop_texts_end_the_answer_before_them() -> None:
    with Root(FakeRunner(script("one two three", "hi")), http=True) as root:
        with client_of(root) as client:
            made = client.completions.create(model="tiny", prompt="hi", max_tokens=20, stop=" two")
            assert made.choices[0].text == "one"
            assert made.choices[0].finish_reason == "stop"
            made = client.completions.create(model="tiny", prompt="hi", max_tokens=20)
            assert made.choices[0].text == "one two three"
            assert made.choices[0].finish_reason == "stop"


def test_completions_of_all_kinds_of_prompts(client: openai.OpenAI) -> None:
    prompts: list[Any] = ["ab", ["ab", "cd"], [97, 98], [[97, 98], [99]]]
    for prompt in prompts:
        made = client.completions.create(model="tiny", prompt=prompt, max_tokens=3, n=2)
        listed = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        texts = [choice.text for choice in made.choices]
        ids = [(256, *p.encode()) if isinstance(p, str) else tuple(p) for p in listed]
        assert texts == [answer(3, each) for each in ids for _ in range(2)]
        assert made.usage is not None
        assert made.usage.prompt_tokens == sum(map(len, ids))
        assert [choice.index for choice in made.choices] == list(range(len(texts)))


def test_echo_and_streamed_completions(client: openai.OpenAI) -> None:
    made = client.completions.create(model="tiny", prompt="ab", max_tokens=3, echo=True)
    assert made.choices[0].text == "ab" + answer(3, (256, *b"ab"))
    parts = client.completions.create(model="tiny", prompt="ab", max_tokens=3, stream=True)
    assert "".join(part.choices[0].text for part in parts) == answer(3, (256, *b"ab"))


def test_sixteen_tokens_are_the_default_of_completions_only() -> None:
    with Root(FakeRunner(letters), http=True) as root, client_of(root) as client:
        made = client.completions.create(model="tiny", prompt="ab")
        assert made.usage is not None
        assert made.usage.completion_tokens == 16
        chat = client.chat.completions.create(model="tiny", messages=PROMPT)
        assert chat.usage is not None
        assert chat.usage.total_tokens == 64
        assert chat.choices[0].finish_reason == "length"


def test_more_tokens_than_there_is_room_for_are_fewer(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="tiny", messages=PROMPT, max_tokens=32_000)
    assert made.usage is not None
    assert made.usage.total_tokens == 64


def test_models(client: openai.OpenAI) -> None:
    listed = list(client.models.list())
    assert [model.id for model in listed] == ["tiny"]
    assert listed[0].object == "model"
    for name in ("tiny", "TINY", "tiny:latest", "owner/tiny"):
        assert client.models.retrieve(name).id == "tiny"
        client.completions.create(model=name, prompt="a", max_tokens=1)


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-9", messages=PROMPT)
    assert error.value.code == "model_not_found"
    assert "'tiny'" in str(error.value)


def test_any_model() -> None:
    with Root(http=True, any_model=True) as root, client_of(root) as client:
        assert client.completions.create(model="gpt-9", prompt="a", max_tokens=1).model == "tiny"


def test_errors_have_a_field_and_numbers(client: openai.OpenAI) -> None:
    def refused(**body: object) -> openai.BadRequestError:
        with pytest.raises(openai.BadRequestError) as error:
            given: dict[str, Any] = {"model": "tiny", "messages": PROMPT, "max_tokens": 1} | body
            client.chat.completions.create(**given)
        return error.value

    error = refused(temperature=101)
    assert (error.param, error.type) == ("temperature", "invalid_request_error")
    assert "[0, 100]" in str(error)
    assert refused(messages=[]).param == "messages"
    assert refused(stop=["x"] * 17).code is None
    assert refused(max_tokens=-2).param == "max_tokens"
    assert refused(messages=[{"role": "king", "content": "x"}]).param == "messages[0].role"
    image = {"type": "image_url", "image_url": {"url": "http://x"}}
    error = refused(messages=[{"role": "user", "content": [image]}])
    assert error.param == "messages[0].content[0]"
    assert "text only" in str(error)
    assert refused(response_format={"type": "xml"}).param == "response_format.type"


def test_a_prompt_that_is_too_long_is_said_in_the_words_that_clients_read(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a" * 100}]
        )
    assert error.value.code == "context_length_exceeded"
    assert "maximum context length is 64 tokens" in str(error.value)
    assert f"you requested {len(IDS) - 2 + 100} tokens" in str(error.value)


def test_a_model_without_a_template() -> None:
    with Root(http=True, chat_template=None) as root, client_of(root) as client:
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="tiny", messages=PROMPT)


def test_a_full_queue_and_a_cluster_that_forms() -> None:
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, http=True, max_streams=1) as root, client_of(root) as client:
        stream = client.completions.create(model="tiny", prompt="a", stream=True)
        with pytest.raises(openai.RateLimitError) as full:
            client.completions.create(model="tiny", prompt="a")
        assert full.value.response.headers["retry-after"]
        assert full.value.code == "rate_limit_exceeded"
        assert runner.gate is not None
        runner.gate.set()
        assert len(list(stream)) > 1


def test_the_cluster_is_not_ready() -> None:
    from hearth.common.errors import HearthError, Reason

    with Root(http=True) as root, client_of(root) as client:
        lost = HearthError(Reason.WORKER_LOST, "worker x:1 is lost")
        root.engine.suspend(lost, refuse=True).wait(5)
        root.cluster.change(root_pb2.CLUSTER_STATE_FORMING, "worker x:1 is lost")
        with pytest.raises(openai.InternalServerError) as error:
            client.completions.create(model="tiny", prompt="a")
        assert error.value.status_code == 503
        assert error.value.response.headers["retry-after"]
        assert "worker x:1 is lost" in str(error.value)
        # Still listed, for clients that look for models while it forms.
        assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_stream_that_fails_does_not_end_cleanly() -> None:
    from hearth.common.errors import HearthError, Reason

    runner = FakeRunner(gate=threading.Event())
    with Root(runner, http=True) as root, client_of(root) as client:
        stream = client.completions.create(model="tiny", prompt="a", stream=True)
        runner.entered.wait(10)
        runner.fail_with = HearthError(Reason.WORKER_UNFIT, "numbers of x:1 are wrong")
        assert runner.gate is not None
        runner.gate.set()
        with pytest.raises(openai.APIError, match="numbers of x:1 are wrong"):
            list(stream)


def test_headers_come_before_the_first_token() -> None:
    """And an event with them: clients count on both."""
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, http=True) as root:
        body = {"model": "tiny", "messages": PROMPT, "stream": True}
        with httpx.stream("POST", f"{root.url}/v1/chat/completions", json=body, timeout=20) as got:
            assert got.headers["content-type"] == "text/event-stream"
            lines = got.iter_lines()
            first = json.loads(next(lines).removeprefix("data: "))
            assert first["choices"][0]["delta"]["role"] == "assistant"
            assert runner.gate is not None
            runner.gate.set()
            assert [line for line in lines if line][-1] == "data: [DONE]"


def test_heartbeats_while_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from hearth.root.api.http import limits

    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.05)
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, http=True) as root:
        for n in (1, 2):
            assert runner.gate is not None
            runner.gate.clear()
            body = {"model": "tiny", "messages": PROMPT, "stream": True, "max_tokens": 2, "n": n}
            with httpx.stream("POST", f"{root.url}/v1/chat/completions", json=body) as got:
                lines = (line for line in got.iter_lines() if line)
                for _ in range(n):
                    next(lines)
                for _ in range(3):
                    beat = json.loads(next(lines).removeprefix("data: "))
                    assert beat["choices"][0]["delta"] == {"content": ""}
                    assert beat["choices"][0]["finish_reason"] is None
                runner.gate.set()
                rest = list(lines)
            assert rest[-1] == "data: [DONE]"


def test_heartbeats_are_of_a_choice_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from hearth.root.api.http import limits

    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.05)
    go_on = threading.Event()

    def next_token(history: tuple[int, ...]) -> int:
        if ord("a") in history:
            return EOS
        if len(history) > 4:
            assert go_on.wait(30)
        return ord("c")

    with Root(FakeRunner(next_token), http=True) as root:
        body = {"prompt": ["a", "b"], "stream": True, "max_tokens": 6}
        with httpx.stream("POST", f"{root.url}/v1/completions", json=body, timeout=20) as got:
            lines = (line.removeprefix("data: ") for line in got.iter_lines() if line)
            choices = (json.loads(line)["choices"][0] for line in lines if line != "[DONE]")
            first = next(each for each in choices if each["finish_reason"])
            assert first["index"] == 0
            beats = 0
            while beats < 3:
                choice = next(choices)
                assert choice["index"] == 1
                beats += choice["text"] == ""
            go_on.set()
            assert [each["finish_reason"] for each in choices][-1] == "length"


def test_paths_without_v1_and_with_a_query(root: Root) -> None:
    got = httpx.post(f"{root.url}/chat/completions?x=1", json={"messages": PROMPT, "max_tokens": 2})
    assert got.status_code == 200
    assert got.json()["choices"][0]["message"]["content"] == answer(2)
    assert httpx.get(f"{root.url}/models/").json()["data"][0]["id"] == "tiny"
    assert httpx.get(f"{root.url}/nothing").status_code == 404
    assert httpx.get(f"{root.url}/v1/chat/completions").status_code == 405


def test_conversations_are_repaired(root: Root) -> None:
    """Two system messages first, a later one, two users in a row, a null, parts."""
    body = {
        "messages": [
            {"role": "developer", "content": "a"},
            {"role": "system", "content": "b"},
            {"role": "user", "content": [{"type": "text", "text": "c"}]},
            {"role": "user", "content": "d", "name": None, "unknown": {"x": 1}},
            {"role": "assistant", "content": None},
            {"role": "system", "content": "e"},
        ],
        "max_tokens": 1,
    }
    assert httpx.post(f"{root.url}/v1/chat/completions", json=body).status_code == 200
    text = "[system]a\n\nb|[user]c\n\nd|[assistant]|[user]e|[assistant]"
    seen = [EOS if letter == ord("|") else letter for letter in text.encode()]
    assert root.runner.batches[0].tokens == (256, *seen)
