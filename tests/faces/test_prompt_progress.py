"""`return_progress`: the progress of a prompt, as llama.cpp's server sends it."""

import json
import threading
from typing import Any

import httpx
import pytest
from serving_fakes import FakeRunner, Root

PROMPT = "a story about a dog and a cat, twice"


def progress_of(root: Root, path: str, body: dict[str, Any]) -> list[dict[str, int]]:
    """The states of the prompt in a stream, which all come before its text."""
    found: list[dict[str, int]] = []
    text = ""
    with httpx.stream("POST", root.url + path, json=body | {"stream": True}, timeout=30) as got:
        for line in got.iter_lines():
            data = line.removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            event = json.loads(data)
            if state := event.get("prompt_progress"):
                assert not text
                found.append(state)
            for choice in event.get("choices", []):
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            text += event.get("content", "")
    assert text
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": PROMPT}),
        ("/completion", {"prompt": PROMPT, "n_predict": 4}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
    ],
)
def test_the_whole_prompt_is_read_before_the_text(path: str, body: dict[str, Any]) -> None:
    with Root(http=True, context_size=128) as root:
        assert progress_of(root, path, body) == []
        asked = body | {"return_progress": True}
        first, *_, last = progress_of(root, path, asked)
        assert first["cache"] == first["processed"] > 0  # the first request left its pages
        assert last["processed"] == last["total"] > first["processed"]
        assert last["cache"] == first["cache"]
        assert last["time_ms"] >= first["time_ms"] >= 0


class Gated(FakeRunner):
    """Computes a step for each `release` only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.places = threading.Semaphore(1)

    def run(self, *arguments: Any) -> Any:
        assert self.places.acquire(timeout=60)
        return super().run(*arguments)


def test_states_come_while_the_prompt_is_read() -> None:
    """Each state once, in order; the next part of the prompt waits until one was seen."""
    runner = Gated(max_step_tokens=8)
    body = {"prompt": PROMPT, "return_progress": True, "stream": True, "max_tokens": 2}
    seen: list[int] = []
    with Root(runner, http=True, max_step_tokens=8, max_running=8) as root:
        with httpx.stream("POST", f"{root.url}/v1/completions", json=body, timeout=60) as got:
            for line in got.iter_lines():
                if '"prompt_progress"' not in line:
                    continue
                state = json.loads(line.removeprefix("data: "))["prompt_progress"]
                assert state["cache"] == 0
                seen.append(state["processed"])
                if seen[-1]:
                    runner.places.release()
                if seen[-1] == state["total"]:
                    break
        for _ in range(100):
            runner.places.release()
    total = 1 + len(PROMPT)
    assert seen == [0, *range(8, total, 8), total]
