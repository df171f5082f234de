"""Rules that clients of every face count on: paths, unknown fields, nulls, limits, long pauses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving_fakes import TOOL_TEMPLATE, FakeRunner, Root

from hearth.common.errors import HearthError, Reason
from hearth.root.api.http import app, limits, openai

MESSAGES = [{"role": "user", "content": "hi"}]
# Requests of one token, and where the answer's text is.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/completions": {"prompt": "hi", "max_tokens": 1},
    "/v1/responses": {"input": "hi", "max_output_tokens": 1},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/embeddings": {"input": "hi"},
    "/api/chat": {"messages": MESSAGES, "options": {"num_predict": 1}, "stream": False},
    "/api/generate": {"prompt": "hi", "options": {"num_predict": 1}, "stream": False},
    "/api/embed": {"input": "hi"},
    "/api/show": {},
    "/api/pull": {"stream": False},
    "/completion": {"prompt": "hi", "n_predict": 1},
    "/tokenize": {"content": "hi"},
    "/detokenize": {"tokens": [97]},
    "/apply-template": {"messages": MESSAGES},
}
# What clients send that no other knows: Codex, Claude Code, OpenAI's own tests, Home Assistant.
STRANGE: dict[str, Any] = {
    "client_metadata": {"x": [1]},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "x"},
    "include": ["reasoning.encrypted_content"],
    "context_management": {"edits": []},
    "output_config": {"effort": "high"},
    "moderation": {"model": "x"},
    "safety_identifier": "s",
    "service_tier": "flex",
    "prediction": {"type": "content", "content": "x"},
    "modalities": ["text"],
    "audio": None,
    "verbosity": "low",
    "web_search_options": {},
    "keep_alive": "-1s",
    "nobody_has_this": {"deep": [{"er": None}]},
}
# Fields that some face reads, as nulls.
NULLS = dict.fromkeys(
    (
        *("temperature", "top_p", "top_k", "min_p", "n", "stop", "stop_sequences", "seed"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
        *("logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "functions"),
        *("parallel_tool_calls", "reasoning_effort", "reasoning", "thinking", "think", "metadata"),
        *("user", "store", "stream_options", "instructions", "text", "system", "suffix", "echo"),
        *("best_of", "template", "context", "raw", "images", "format", "dimensions", "truncate"),
        *("encoding_format", "previous_response_id", "chat_template_kwargs", "grammar"),
        *("json_schema", "structured_outputs", "return_progress", "cache_prompt", "n_probs"),
    )
)


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


def post(root: Root, path: str, body: dict[str, Any], name: str = "tiny") -> httpx.Response:
    return httpx.post(f"{root.url}{path}", json={"model": name, **body}, timeout=20)


def plain(got: httpx.Response) -> Any:
    """An answer without what differs each time."""
    assert got.status_code == 200, got.text
    changing = ("id", "created", "created_at", "timings", "modified_at", "metadata", "tools")

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [kept(each) for each in value]
        if not isinstance(value, dict):
            return value
        return {
            name: kept(each)
            for name, each in value.items()
            if name not in changing and "duration" not in name
        }

    return kept(got.json())


@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields_and_nulls_change_nothing(root: Root, path: str) -> None:
    body = BODIES[path]
    post(root, path, body)  # from now on the prefix cache has the prompt
    before = plain(post(root, path, body))
    assert before
    assert plain(post(root, path, {**body, **STRANGE})) == before
    # (With null, stream is that of the face: Ollama's is on, so it stays off there.)
    assert plain(post(root, path, {**NULLS, **body})) == before


def test_each_path_is_read_by_its_method(root: Root) -> None:
    """With a query, and OpenAI's without /v1. No path gives 404 or 405 to its own method."""
    served = {**app._OTHERS, **app._OPENAI, **{f"/v1{p}": r for p, r in app._OPENAI.items()}}
    assert {"/chat/completions", "/v1/messages", "/api/chat", "/health", "/"} <= served.keys()
    with httpx.Client(base_url=root.url, timeout=20) as client:
        for path, (method, handler) in served.items():
            if path in ("/cluster/events", "/page/{name:path}"):  # a stream; files
                continue
            asked = path.replace("{id:path}", "tiny").replace("{digest:path}", "sha256:0")
            body: dict[str, Any] | None = {} if method == "POST" else None
            got = client.request(method, f"{asked}?beta=true", json=body)
            assert got.status_code not in (404, 405), path
            assert handler is not openai.model or got.json()["id"] == "tiny"
        for path in ("/", "/health", "/api/tags", "/v1/models"):
            head = client.head(path)
            assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 32_000}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_completion_tokens": 1 << 31}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 32_000}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 32_000}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 32_000}),
        ("/api/chat", {"messages": MESSAGES, "options": {"num_ctx": 1 << 20}}),
        ("/api/generate", {"prompt": "hi", "options": {"num_ctx": 9004, "num_predict": 9004}}),
        ("/completion", {"prompt": "hi", "n_predict": 32_000}),
    ],
)
def test_more_than_there_is_room_for_is_as_much_as_there_is(
    root: Root, path: str, body: dict[str, Any]
) -> None:
    """Claude Code asks for 32,000 tokens, aider for a context of 9,004."""
    got = post(root, path, {**body, "stream": False})
    assert got.status_code == 200, got.text
    # The context has 64 positions; the last token is not computed.
    assert sum(len(step.tokens) for batch in root.runner.batches for step in batch.sequences) == 63


BEATS = 3
STREAMS = {
    path: {**BODIES[path], "stream": True}
    for path in (
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/api/chat", "/api/generate"),
    )
}


@pytest.mark.parametrize("path", STREAMS)
def test_a_long_pause_is_heartbeats_and_then_the_text_goes_on(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A worker is lost in the middle, and the cluster forms again: no error, and no letter lost."""
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.05)
    many = json.loads(json.dumps(STREAMS[path]).replace(": 1", ": 12"))
    with Root(FakeRunner(), http=True, pause_seconds=60) as root:
        undisturbed = text_of(post(root, path, many).text)
        root.runner.batches.clear()
        root.runner.seconds = 0.01
        url = f"{root.url}{path}"
        with httpx.stream("POST", url, json={"model": "tiny", **many}, timeout=60) as got:
            lost = HearthError(Reason.WORKER_LOST, "worker x:1 is lost")
            lines: list[str] = []
            beats = resumed = False
            for line in got.iter_lines():
                lines.append(line)
                if not beats and len(root.runner.batches) >= 3:
                    root.engine.suspend(lost).wait(10)
                    beats, seen = True, len(lines)
                elif beats and not resumed and len([e for e in lines[seen:] if e]) >= 4 * BEATS:
                    root.runner.seconds = 0
                    root.runner.cache.clear()  # what the nodes had is lost
                    root.engine.resume()
                    resumed = True
        assert resumed
    text = "\n".join(lines)
    assert '"error":{' not in text
    assert text_of(text) == undisturbed


def text_of(stream: str) -> str:
    """The text of a whole stream of any face."""
    found = ""
    for line in stream.splitlines():
        data = line.removeprefix("data: ")
        if not data.startswith("{"):
            continue
        event = json.loads(data)
        match event:
            case {"choices": [{"delta": {"content": str(part)}}]}:
                found += part
            case {"choices": [{"text": str(part)}]}:
                found += part
            case {"type": "response.output_text.delta", "delta": str(part)}:
                found += part
            case {"type": "content_block_delta", "delta": {"text": str(part)}}:
                found += part
            case {"message": {"content": str(part)}} | {"response": str(part)}:
                found += part
            case _:
                pass
    return found


@pytest.mark.parametrize(
    ("effort", "shown", "seen"),
    [("high", "high", "TTrueEhigh"), ("banana", None, "TTrueE"), ("none", "none", "TFalseE")],
)
def test_an_effort_that_nobody_knows_is_reasoning_as_usual(
    effort: str, shown: str | None, seen: str
) -> None:
    """OpenAI adds efforts now and then. The response names only those of OpenAI's document."""
    switch = "T{{ enable_thinking }}E{{ reasoning_effort or '' }}."
    template = TOOL_TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}" + switch)
    with Root(http=True, chat_template=template, context_size=256) as root:
        body = {"input": "hi", "reasoning": {"effort": effort}, "max_output_tokens": 1}
        got = post(root, "/v1/responses", body)
        assert got.status_code == 200, got.text
        assert got.json()["reasoning"]["effort"] == shown
        prompt = bytes(t for t in root.runner.batches[0].tokens if t < 256).decode()
        assert prompt.startswith(f"{seen}.")
        given = {"messages": MESSAGES, "reasoning_effort": effort}
        assert post(root, "/v1/chat/completions", given).status_code == 200


def test_nothing_is_kept_of_responses(root: Root) -> None:
    """`store: true` is answered with `store: false`, and the id names nothing afterwards."""
    body = {"input": "hi", "max_output_tokens": 1, "store": True}
    made = post(root, "/v1/responses", body).json()
    assert made["store"] is False
    again = post(root, "/v1/responses", {"input": "hi", "previous_response_id": made["id"]})
    assert (again.status_code, again.json()["error"]["param"]) == (400, "previous_response_id")
    assert httpx.get(f"{root.url}/v1/responses/{made['id']}").status_code == 404
    assert not root.frontend.open_answers
