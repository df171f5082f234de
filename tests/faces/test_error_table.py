"""Errors of every kind, in the shape and with the status that each face's clients read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving_fakes import Root

from hearth.common.errors import HearthError, Reason

MESSAGES = [{"role": "user", "content": "hi"}]
PATHS = ("/v1/chat/completions", "/v1/responses", "/completion", "/v1/messages", "/api/chat")
INVALID = "invalid_request_error"
# Reason -> status, Retry-After, OpenAI's type and code, Anthropic's status and type.
TABLE: dict[Reason, tuple[int, bool, str, str | None, int, str]] = {
    Reason.INVALID_ARGUMENT: (400, False, INVALID, None, 400, INVALID),
    Reason.NO_CHAT_TEMPLATE: (400, False, INVALID, None, 400, INVALID),
    Reason.PROMPT_TOO_LONG: (400, False, INVALID, "context_length_exceeded", 400, INVALID),
    Reason.UNAUTHENTICATED: (401, False, INVALID, "invalid_api_key", 401, "authentication_error"),
    Reason.QUEUE_FULL: (
        *(429, True, "rate_limit_error", "rate_limit_exceeded"),
        *(429, "rate_limit_error"),
    ),
    Reason.CLUSTER_NOT_READY: (
        *(503, True, "server_error", "cluster_not_ready"),
        *(529, "overloaded_error"),
    ),
    Reason.WORKER_LOST: (503, True, "server_error", "worker_lost", 529, "overloaded_error"),
    Reason.SHUTTING_DOWN: (503, True, "server_error", "shutting_down", 529, "overloaded_error"),
    Reason.INTERNAL: (500, False, "server_error", None, 500, "api_error"),
    Reason.MODEL_ERROR: (500, False, "server_error", None, 500, "api_error"),
}


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


def post(root: Root, path: str, **more: Any) -> httpx.Response:
    given = {"input": "hi"} if path == "/v1/responses" else {"messages": MESSAGES, "prompt": "hi"}
    body = {"model": "tiny", "max_tokens": 3, **given}
    return httpx.post(f"{root.url}{path}", json={**body, **more})


@pytest.mark.parametrize("reason", TABLE)
@pytest.mark.parametrize("stream", [False, True])
def test_reasons(root: Root, monkeypatch: pytest.MonkeyPatch, reason: Reason, stream: bool) -> None:
    """Known before the first token, so with a status of its own in streams too."""
    status, again, kind, code, claude_status, claude = TABLE[reason]
    facts = {"contextSize": 64, "promptTokens": 70}

    def check(params: object) -> None:
        raise HearthError(reason, "it is refused", facts)

    monkeypatch.setattr(root.engine, "check", check)
    for path in PATHS:
        got = post(root, path, stream=stream)
        body = got.json()
        assert got.headers["content-type"] == "application/json"
        assert ("retry-after" in got.headers) is again
        if path == "/v1/messages":
            assert got.status_code == claude_status
            assert body.keys() == {"type", "error", "request_id"}
            assert (body["type"], body["error"]["type"]) == ("error", claude)
            assert body["request_id"] == got.headers["request-id"]
            continue
        assert got.status_code == status
        if path == "/api/chat":
            assert "it is refused" in body["error"]
            assert body.keys() == {"error"}
        else:
            assert body["error"].keys() == {"message", "type", "param", "code"}
            assert (body["error"]["type"], body["error"]["code"]) == (kind, code)
            assert "it is refused" in body["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "claude"),
    [
        ("POST", "/v1/nothing", 404, ""),
        ("POST", "/v1/messages/nothing", 404, "not_found_error"),
        ("POST", "/api/nothing", 404, ""),
        ("GET", "/v1/chat/completions", 405, ""),
        ("GET", "/v1/messages", 405, "not_found_error"),
        ("GET", "/api/chat", 405, ""),
        ("POST", "/api/delete", 405, ""),
        ("DELETE", "/api/delete", 501, ""),
        ("POST", "/api/push", 501, ""),
        ("POST", "/api/copy", 501, ""),
    ],
)
def test_paths_that_are_not_served(
    root: Root, method: str, path: str, status: int, claude: str
) -> None:
    got = httpx.request(method, f"{root.url}{path}")
    assert got.status_code == status
    error = got.json()["error"]
    if path.startswith("/api"):
        assert isinstance(error, str)
    else:
        assert error["type"] == claude or (not claude and error["type"] == INVALID)


@pytest.mark.parametrize("path", PATHS)
def test_a_model_that_is_not_here(root: Root, path: str) -> None:
    got = post(root, path, model="other")
    assert got.status_code == 404
    error = got.json()["error"]
    if path == "/v1/messages":
        assert error["type"] == "not_found_error"
    elif path == "/api/chat":
        assert "'other' does not exist" in error
    else:
        assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_is_too_large(root: Root, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    from hearth.root.api.http import limits

    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 1000)
    got = post(root, path, prompt="x" * 2000)
    assert got.status_code == 413
    error = got.json()["error"]
    if path == "/v1/messages":
        assert error["type"] == "request_too_large"
    elif path == "/api/chat":
        assert "larger than 1000 bytes" in error
    else:
        assert error["type"] == INVALID
