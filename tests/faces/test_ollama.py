"""Ollama's face, through Ollama's own client, with a stand-in for the model."""

import datetime
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
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
def client(root: Root) -> ollama.Client:
    return ollama.Client(host=root.url, timeout=20)


def answer(count: int) -> str:
    return bytes(expected(IDS, count)).decode()


@pytest.mark.parametrize("name", ["tiny", "tiny:latest", "Tiny"])
def test_chat(client: ollama.Client, name: str) -> None:
    made = client.chat(model=name, messages=PROMPT, options={"num_predict": 5})
    assert made.message.role == "assistant"
    assert made.message.content == answer(5)
    assert made.done
    assert (made.model, made.done_reason) == (name, "length")
    assert (made.prompt_eval_count, made.eval_count) == (len(IDS), 5)
    assert made.total_duration is not None


def test_chat_as_a_stream(client: ollama.Client) -> None:
    parts = list(
        client.chat(model="tiny", messages=PROMPT, stream=True, options={"num_predict": 5})
    )
    assert "".join(part.message.content or "" for part in parts) == answer(5)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].done_reason == "length"
    assert parts[-1].eval_count == 5


def test_streaming_is_the_default(root: Root) -> None:
    body = {"model": "tiny", "messages": PROMPT, "options": {"num_predict": 2}, "tools": None}
    got = httpx.post(f"{root.url}/api/chat", json={**body, "keep_alive": "-1s"})
    assert got.headers["content-type"] == "application/x-ndjson"
    lines = got.text.removesuffix("\n").split("\n")
    assert all(json.loads(line)["message"]["role"] == "assistant" for line in lines)


def test_generate(client: ollama.Client, root: Root) -> None:
    made = client.generate(model="tiny", prompt="hi", options={"num_predict": 5})
    assert made.response == answer(5)
    raw = client.generate(model="tiny", prompt="hi", raw=True, options={"num_predict": 5})
    assert raw.response == bytes(expected((256, *b"hi"), 5)).decode()
    root.runner.batches.clear()
    client.generate(model="tiny", prompt="hi", system="s", options={"num_predict": 1})
    system = (256, *b"[system]s", EOS)
    assert root.runner.batches[0].tokens == (*system, *IDS[1:])


def test_without_a_prompt_a_model_is_only_loaded(client: ollama.Client, root: Root) -> None:
    assert client.generate(model="tiny").done_reason == "load"
    assert client.generate(model="tiny", keep_alive=0).done_reason == "unload"
    assert client.chat(model="tiny").done_reason == "load"
    assert not root.runner.batches


def test_stop_and_options() -> None:
    runner = FakeRunner(script("one two three", "hi"))
    with Root(runner, http=True) as root:
        client = ollama.Client(host=root.url, timeout=20)
        options = {"stop": [" two"], "num_ctx": 1 << 20, "num_predict": -1, "seed": -7, "top_k": 0}
        made = client.generate(model="tiny", prompt="hi", raw=True, options=options)
        assert (made.response, made.done_reason) == ("one", "stop")


def test_what_there_is(client: ollama.Client, root: Root) -> None:
    root.cluster.weight_bytes = 1000
    (listed,) = client.list().models
    assert listed.model == "tiny:latest"
    assert listed.size == 1000
    assert listed.digest is not None
    assert len(listed.digest) == 64
    assert listed.details is not None
    assert listed.details.quantization_level == "Q4_0"
    (running,) = client.ps().models
    assert running.context_length == 64
    assert running.expires_at is not None
    assert running.expires_at > datetime.datetime.now(datetime.UTC)
    shown = client.show("tiny")
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 64
    assert shown.capabilities == ["completion", "tools"]
    assert httpx.get(f"{root.url}/api/version").json()["version"] >= "0.13.4"
    assert httpx.get(root.url).text == "Ollama is running"
    raw = httpx.get(f"{root.url}/api/tags").json()["models"][0]
    assert raw["name"] == raw["model"]
    details = raw["details"]
    assert all(isinstance(details[name], str) for name in ("family", "format", "parameter_size"))


def test_pull(client: ollama.Client) -> None:
    assert client.pull("tiny").status == "success"
    assert [part.status for part in client.pull("tiny:latest", stream=True)] == ["success"]
    with pytest.raises(ollama.ResponseError, match="does not exist") as error:
        client.pull("llama3")
    assert error.value.status_code == 404


def test_errors_are_texts(client: ollama.Client, root: Root) -> None:
    def refused(status: int, **body: Any) -> str:
        with pytest.raises(ollama.ResponseError) as error:
            client.chat(**({"model": "tiny", "messages": PROMPT} | body))
        assert error.value.status_code == status
        return error.value.error

    assert "does not exist" in refused(404, model="llama3")
    assert "format" in refused(400, format={"type": "strin"})
    assert "thinking" in refused(400, think=True)
    assert "a number" in refused(400, options={"temperature": "warm"})
    assert "maximum context length" in refused(
        400, messages=[{"role": "user", "content": "a" * 99}]
    )
    got = httpx.post(f"{root.url}/api/create", json={})
    assert (got.status_code, list(got.json())) == (501, ["error"])
    assert httpx.post(f"{root.url}/api/nothing", json={}).status_code == 404


def test_tool_results_without_a_name_or_an_id() -> None:
    """As Home Assistant sends them."""
    function = {"name": "f", "arguments": {"a": 1}}
    body = {
        "model": "tiny",
        "messages": [
            *PROMPT,
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
            {"role": "tool", "content": "1"},
        ],
        "options": {"num_predict": 1},
        "stream": False,
    }
    with Root(http=True, chat_template=TOOL_TEMPLATE, context_size=512) as root:
        assert httpx.post(f"{root.url}/api/chat", json=body, timeout=20).status_code == 200
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    text = f"[user]hi|[assistant]{call}|[tool]1|[assistant]"
    seen = [EOS if letter == ord("|") else letter for letter in text.encode()]
    assert root.runner.batches[0].tokens == (256, *seen)


def test_a_stream_that_fails() -> None:
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, http=True) as root:
        client = ollama.Client(host=root.url, timeout=20)
        stream = client.chat(model="tiny", messages=PROMPT, stream=True)
        next(iter(stream))
        runner.entered.wait(10)
        runner.fail_with = HearthError(Reason.WORKER_UNFIT, "numbers of x:1 are wrong")
        assert runner.gate is not None
        runner.gate.set()
        with pytest.raises(ollama.ResponseError, match="numbers of x:1 are wrong"):
            list(stream)


def test_log_probabilities() -> None:
    with Root(http=True) as root:
        client = ollama.Client(root.url)
        options = {"num_predict": 3}
        asked: Any = {"model": "tiny", "options": options, "logprobs": True, "top_logprobs": 2}
        whole: Any = client.generate(prompt="hi", **asked).model_dump()
        assert "".join(each["token"] for each in whole["logprobs"]) == whole["response"]
        assert [len(each["top_logprobs"]) for each in whole["logprobs"]] == [2, 2, 2]
        body = asked | {"messages": [{"role": "user", "content": "hi"}]}
        with httpx.stream("POST", f"{root.url}/api/chat", json=body) as got:
            lines = [json.loads(line) for line in got.iter_lines()]
        entries = [entry for line in lines for entry in line.get("logprobs", [])]
        text = "".join(line["message"]["content"] for line in lines)
        assert "".join(entry["token"] for entry in entries) == text
        del body["logprobs"]
        assert (
            "logprobs"
            not in httpx.post(f"{root.url}/api/chat", json=body | {"stream": False}).json()
        )
