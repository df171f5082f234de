"""State of a request in the engine."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hearth.converter.tokenizers.base import StreamDecoder
from hearth.root.engine.interfaces import TokenSampler
from hearth.root.engine.mailbox import Sink, TokenScore, Usage
from hearth.root.engine.params import GenerateParams
from hearth.root.engine.pooling import Pooler
from hearth.root.engine.stopping import StopMatcher
from hearth.root.engine.structure.matching import Matcher


@dataclass(slots=True, eq=False)
class Active:
    """An open request. Times are time.perf_counter() seconds, 0 before the event."""

    seq_id: int
    params: GenerateParams
    sink: Sink
    sampler: TokenSampler
    decoder: StreamDecoder
    stops: StopMatcher
    matcher: Matcher | None
    submitted: float
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0
    made: int = 0
    # Tokens of the prompt found in the prefix cache.
    cached: int = 0
    # Positions of the prompt that were computed, or found in a cache.
    prefilled: int = 0
    # Of sampled tokens that were not delivered yet, oldest first.
    scores: deque[TokenScore] = field(default_factory=deque)
    # Tokens of the prompt whose scores are still to come.
    unscored: int = 0
    # Losses of the cluster in steps of this request since its last token.
    setbacks: int = 0
    # Of a request for a vector.
    pooler: Pooler | None = None

    def usage(self) -> Usage:
        """The request's usage; seconds of phases not reached are 0."""
        return Usage(
            len(self.params.prompt),
            self.made,
            max(0.0, self.started - self.submitted),
            max(0.0, self.first - self.started),
            max(0.0, self.last - self.first),
            self.cached,
        )


@dataclass(frozen=True, slots=True)
class RequestHandle:
    """The caller's handle of a request."""

    seq_id: int
    _cancel: Callable[[], object]
    # The positions of the prompt that were computed; of any thread.
    prefilled: Callable[[], int] = lambda: 0
    # Those of them that the prefix cache had.
    cached: Callable[[], int] = lambda: 0

    def cancel(self) -> None:
        """Ends the request with Failed(CANCELLED) before the next step, unless it has ended."""
        self._cancel()
