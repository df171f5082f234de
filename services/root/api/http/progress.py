"""The progress of a prompt in a stream, as llama.cpp's server sends it for `return_progress`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hearth.root.api.answer import Answer

# The object of one state -> the bytes of its event.
Shown = Callable[[dict[str, Any]], bytes]


class Progress:
    """Each state of an answer's prompt once: first what the cache had, at last all of it."""

    def __init__(self, answer: Answer, shown: Shown) -> None:
        self._answer = answer
        self._shown = shown
        self._began = time.monotonic()
        self._processed = -1

    def __call__(self, read: bool) -> bytes:
        """The events of states that were not sent. read: the whole prompt was."""
        total, cached = self._answer.prompt_tokens, self._answer.cached_tokens
        now = total if read else self._answer.prefilled
        if now is None or (not read and not now):
            return b""
        events = self._event(total, cached, cached) if self._processed < 0 else b""
        return events + (self._event(total, cached, now) if now > self._processed else b"")

    def _event(self, total: int, cached: int, processed: int) -> bytes:
        self._processed = processed
        milliseconds = round((time.monotonic() - self._began) * 1000)
        return self._shown(
            {
                "total": total,
                "cache": cached,
                "processed": processed,
                "time_ms": milliseconds,
            }
        )
