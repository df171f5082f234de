"""Streams while nothing is made, byte by byte: their beginning, their heartbeats, their end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving_fakes import FakeRunner, Root

from hearth.root.api.http import limits

BEATS = 3


def body_of(path: str) -> dict[str, Any]:
    """A request for two tokens."""
    body: dict[str, Any] = {"model": "tiny", "stream": True}
    if path == "/v1/responses":
        return {**body, "input": "hi", "max_output_tokens": 2}
    messages = [{"role": "user", "content": "hi"}]
    options = {"num_predict": 2}
    return {**body, "messages": messages, "prompt": "hi", "max_tokens": 2, "options": options}


def is_beat(path: str, event: dict[str, Any]) -> bool:
    """True for an event without contents that says nothing else."""
    match path:
        case "/v1/chat/completions":
            (choice,) = event["choices"]
            return bool(choice["delta"] == {"content": ""} and choice["finish_reason"] is None)
        case "/v1/completions":
            (choice,) = event["choices"]
            return bool(choice["text"] == "" and choice["finish_reason"] is None)
        case "/v1/responses":
            return bool(event["type"] == "response.in_progress")
        case "/v1/messages":
            return event == {"type": "ping"}
        case "/api/chat":
            return bool(event["message"]["content"] == "" and not event["done"])
    return bool(event["response"] == "" and not event["done"])


# The last event of each, as the path's clients wait for it.
LAST = {
    "/v1/chat/completions": "[DONE]",
    "/v1/completions": "[DONE]",
    "/v1/responses": "response.incomplete",
    "/v1/messages": "message_stop",
    "/api/chat": "done",
    "/api/generate": "done",
}


@pytest.mark.parametrize("path", LAST)
def test_heartbeats_are_events_and_nothing_else_is_sent(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.05)
    runner = FakeRunner(gate=threading.Event())
    lined = path.startswith("/api/")
    with (
        Root(runner, http=True) as root,
        httpx.stream("POST", f"{root.url}{path}", json=body_of(path), timeout=60) as got,
    ):
        assert got.status_code == 200  # the headers come before a token is computed
        kind = "application/x-ndjson" if lined else "text/event-stream"
        assert got.headers["content-type"].startswith(kind)
        texts: list[str] = []
        beats = 0
        for text in events(got, lined):
            texts.append(text)
            if text == "[DONE]":
                continue
            event = json.loads(text)
            made = runner.gate is not None and runner.gate.is_set()
            beats += not made and len(texts) > 1 and is_beat(path, event)
            if beats == BEATS and runner.gate is not None:
                runner.gate.set()
    assert beats == BEATS
    last = texts[-1]
    if last != "[DONE]":
        event = json.loads(last)
        last = "done" if event.get("done") is True else event["type"]
    assert last == LAST[path]


def events(got: httpx.Response, lined: bool) -> Iterator[str]:
    """The data of events, each as it comes; nothing else may be between them."""
    name = ""
    blank = True
    for line in got.iter_lines():
        if lined:
            assert line, "a blank line"
            yield line
        elif line.startswith("event: "):
            assert blank
            name, blank = line, False
        elif line.startswith("data: "):
            assert blank or name
            name, blank = "", False
            yield line.removeprefix("data: ")
        else:
            # One blank line behind an event: no comments, no empty events.
            assert line == ""
            assert not blank
            blank = True
