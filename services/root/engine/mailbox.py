"""Events of a request, and the box in which they wait for a reader that may be slow."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from hearth.common.errors import HearthError
from hearth.root.scheduling.batch import FinishReason


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of a request. Seconds are the root's own clock."""

    prompt_tokens: int
    completion_tokens: int
    # Waiting for a place in a batch; then until the first token; then from first to last token.
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class Delta:
    """New since the last one: text in whole characters (may be empty) and every token made."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The request ended well; nothing follows."""

    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended with an error; nothing follows."""

    error: HearthError


Event = Delta | Done | Failed
Sink = Callable[[Event], None]


class Mailbox:
    """A sink whose reader takes all that is new at once; deltas that wait are merged into one.

    That bounds its memory without ever holding up the engine: it keeps at most one answer, and an
    answer has at most as many tokens as the context has positions. The number of mailboxes is
    bounded by the scheduler's queue and by the service's limit on open streams.

    `wake` is called from the engine's thread when an empty box gets its first event.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._end: Done | Failed | None = None

    def __call__(self, event: Event) -> None:
        with self._lock:
            was_empty = not self._token_ids and self._end is None
            if isinstance(event, Delta):
                self._text.append(event.text)
                self._token_ids += event.token_ids
            else:
                self._end = event
        if was_empty:
            self._wake()

    def take(self) -> tuple[Delta | None, Done | Failed | None]:
        """The news since the last call: a delta, the end, both or neither, in this order."""
        with self._lock:
            delta = Delta("".join(self._text), tuple(self._token_ids)) if self._token_ids else None
            self._text.clear()
            self._token_ids.clear()
            end, self._end = self._end, None
        return delta, end
