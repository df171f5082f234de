"""A request on its way through the engine."""

from collections.abc import Callable
from dataclasses import dataclass

from hearth.converter.tokenizers.base import StreamDecoder
from hearth.root.engine.interfaces import TokenSampler
from hearth.root.engine.mailbox import Sink, Usage
from hearth.root.engine.params import GenerateParams
from hearth.root.engine.stopping import StopMatcher


@dataclass(slots=True, eq=False)
class Active:
    """A request on its way. Times are time.perf_counter() seconds; 0 where not yet."""

    seq_id: int
    params: GenerateParams
    sink: Sink
    sampler: TokenSampler
    decoder: StreamDecoder
    stops: StopMatcher
    submitted: float
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0
    made: int = 0
    # Times in a row that the cluster was lost in a step of this request, and it got no token since.
    setbacks: int = 0

    def usage(self) -> Usage:
        """Seconds of phases that the request did not reach are 0."""
        return Usage(
            len(self.params.prompt),
            self.made,
            max(0.0, self.started - self.submitted),
            max(0.0, self.first - self.started),
            max(0.0, self.last - self.first),
        )


@dataclass(frozen=True, slots=True)
class RequestHandle:
    """The caller's end of a request."""

    seq_id: int
    _cancel: Callable[[], object]

    def cancel(self) -> None:
        """Ends the request with Failed(CANCELLED) before the next step; else does nothing."""
        self._cancel()
