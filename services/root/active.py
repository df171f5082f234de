"""A request on its way through the engine, and the errors that end one."""

from collections.abc import Callable
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason
from hearth.converter.tokenizers.base import StreamDecoder
from hearth.root.interfaces import TokenSampler
from hearth.root.mailbox import Sink, Usage
from hearth.root.params import GenerateParams
from hearth.root.stopping import StopMatcher


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


def shutting_down() -> HearthError:
    return HearthError(
        Reason.SHUTTING_DOWN,
        "the root is shutting down and takes no new requests; connect again when it is back",
    )


def cancelled() -> HearthError:
    return HearthError(Reason.CANCELLED, "the request was cancelled by its caller")


def internal(error: Exception) -> HearthError:
    return HearthError(
        Reason.INTERNAL,
        f"a step failed on the root: {type(error).__name__}: {error}; the root goes on serving, "
        "and its log has the details",
    )


def formed_anew() -> HearthError:
    return HearthError(Reason.CLUSTER_NOT_READY, "the cluster was formed anew")


def not_serving(cause: HearthError) -> HearthError:
    """What a new request is told while the cluster cannot serve because of `cause`."""
    return HearthError(
        Reason.CLUSTER_NOT_READY,
        f"the cluster is not serving: {cause.message}",
        {**cause.metadata, "cause": cause.reason},
    )


def waited_too_long(cause: HearthError, seconds: float) -> HearthError:
    """What a request is told that waited in vain for the cluster to come back."""
    return HearthError(
        cause.reason,
        f"{cause.message}; requests wait {seconds:g} s for the cluster to serve again "
        "(--pause-seconds), and it did not",
        {**cause.metadata, "pausedSeconds": f"{seconds:g}"},
        cause.code,
    )


def lost_too_often(cause: HearthError, times: int) -> HearthError:
    """What a request is told in whose steps the cluster is lost again and again."""
    return HearthError(
        cause.reason,
        f"{cause.message}; the cluster was lost {times} times in a row before this request got a "
        "token",
        {**cause.metadata, "times": times},
        cause.code,
    )


def fits_no_more(problem: HearthError, cause: HearthError) -> HearthError:
    """What a request is told that has no room in the cluster as it is after `cause`."""
    return HearthError(
        problem.reason,
        f"{problem.message}, since the model was divided anew: {cause.message}",
        {**cause.metadata, **problem.metadata, "cause": cause.reason},
        problem.code,
    )
