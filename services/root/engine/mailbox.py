"""Events of a request, and the mailbox in which they wait for a reader."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hearth.common.errors import HearthError
from hearth.root.scheduling.batch import FinishReason


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of a request, with seconds of the root's clock."""

    prompt_tokens: int
    completion_tokens: int
    # Wait for the first batch; from then to the first token; from the first to the last token.
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    # Tokens of the prompt that were not computed, because the prefix cache had their pages.
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenScore:
    """Natural logarithms of probabilities, before sampling changes them: of a token and the best.

    top: (token, logarithm) of the most likely tokens, the best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """New since the last delta: text in whole characters (may be empty), and all tokens.

    scores: of each token but an end of sequence, where the request asks for them; before these, of
    the prompt's tokens behind the first, where it asks for those, too.
    """

    text: str
    token_ids: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """No text for a while: the cluster is not ready, for this reason; "" when it is again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """Last event of a request that ended without an error. stop: the stop text that ended it.

    vector: f32 [hidden_size], of a request for one.
    """

    finish_reason: FinishReason
    usage: Usage
    stop: str | None = None
    vector: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Last event of a request that ended with an error."""

    error: HearthError


Event = Delta | Done | Failed
Sink = Callable[[Event], None]


class Mailbox:
    """A sink that merges waiting deltas into one, so that a reader takes everything new at once.

    That bounds memory without blocking the engine: a mailbox holds at most one answer, which has at
    most as many tokens as the context has positions. The scheduler's queue and the service's limit
    on open streams bound the number of mailboxes.

    `wake` is called from the engine's thread when an empty box gets its first event.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._scores: list[TokenScore] = []
        self._end: Done | Failed | None = None

    def __call__(self, event: Event) -> None:
        with self._lock:
            was_empty = not self._token_ids and not self._scores and self._end is None
            if isinstance(event, Delta):
                self._text.append(event.text)
                self._token_ids += event.token_ids
                self._scores += event.scores
            else:
                self._end = event
        if was_empty:
            self._wake()

    def take(self) -> tuple[Delta | None, Done | Failed | None]:
        """Takes the events since the last call: a delta, the end, both or neither."""
        with self._lock:
            delta = None
            if self._token_ids or self._scores:
                ids, scores = tuple(self._token_ids), tuple(self._scores)
                delta = Delta("".join(self._text), ids, scores)
            self._text.clear()
            self._token_ids.clear()
            self._scores.clear()
            end, self._end = self._end, None
        return delta, end
