"""Drains that are under way, and their undoing: each is answered by what its own worker is.

Pure state but for the futures: the supervisor passes in the time and what it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason
from hearth.root.membership.membership import Membership
from hearth.root.membership.peers import Peer, PeerState
from hearth.v1 import root_pb2

# The most that `hearth cluster drain --seconds` allows. A call without a deadline ends after it.
LIMIT_SECONDS = 3600.0

Answer = Future[root_pb2.ClusterStatus]


@dataclass(slots=True)
class _Waiting:
    peer: Peer
    undo: bool
    until: float
    answer: Answer
    # Of an undo: why the worker could not be used when it was asked after it.
    refusal: HearthError | None = None


class Drains:
    """Not thread-safe. An answer is a future; a caller that leaves cancels it, and is dropped."""

    def __init__(
        self, membership: Membership, status: Callable[[], root_pb2.ClusterStatus]
    ) -> None:
        """status: the cluster now; the answer of each that succeeds."""
        self._membership = membership
        self._status = status
        self._waiting: list[_Waiting] = []

    def add(self, worker: str, undo: bool, answer: Answer, now: float) -> None:
        """Answer when the worker is out; with `undo`, when it is in. The membership knows it."""
        peer = self._membership.called(worker)
        self._waiting.append(_Waiting(peer, undo, now + LIMIT_SECONDS, answer))

    def refused(self, address: str, error: HearthError) -> None:
        """A worker answered that it cannot be used, or did not answer."""
        for waiting in self._waiting:
            if waiting.undo and waiting.peer.address == address:
                waiting.refusal = error

    def look(self, now: float, serves: bool) -> None:
        """Answer those that are decided; serves: the cluster serves, and goes on as it is."""
        known = set(self._membership.peers)
        decided: list[tuple[Answer, HearthError | bool]] = []
        undecided = []
        for waiting in self._waiting:
            result = _undone(waiting, known, serves) if waiting.undo else _drained(waiting, serves)
            if result is None and now >= waiting.until:
                result = _late(waiting)
            if result is not None:
                decided.append((waiting.answer, result))
            elif not waiting.answer.cancelled():
                undecided.append(waiting)
        self._waiting = undecided
        for answer, result in decided:
            if isinstance(result, HearthError):
                fail(answer, result)
            elif answer.set_running_or_notify_cancel():
                answer.set_result(self._status())

    def end(self, error: HearthError) -> None:
        """Fail all."""
        for waiting in self._waiting:
            fail(waiting.answer, error)
        self._waiting.clear()


def fail(answer: Answer, error: Exception) -> None:
    """End a future with an error, unless its caller has left."""
    if answer.set_running_or_notify_cancel():
        answer.set_exception(error)


# Each: True once the worker is as it should be, an error if it will not be, else None.


def _drained(waiting: _Waiting, serves: bool) -> HearthError | bool | None:
    peer = waiting.peer
    if not peer.drained:
        problem = f"worker {peer.title} was restarted or let in again before it was out"
        return HearthError(Reason.CANCELLED, problem, {"worker": peer.address})
    return True if serves and peer.state is not PeerState.IN else None


def _undone(waiting: _Waiting, known: set[Peer], serves: bool) -> HearthError | bool | None:
    peer, refusal = waiting.peer, waiting.refusal
    prefix = f"worker {peer.title} may be used again, but"
    if peer not in known:
        problem = f"{prefix} no source lists it any more"
        return HearthError(Reason.WORKER_UNREACHABLE, problem, {"worker": peer.address})
    if peer.drained:
        problem = f"worker {peer.title} was taken out, or stops: {peer.reason}"
        return HearthError(Reason.CANCELLED, problem, {"worker": peer.address})
    if peer.state in (PeerState.IN, PeerState.READY):
        if serves and peer.lacks_memory:
            problem = f"{prefix} it lacks memory: {peer.reason}"
            return HearthError(Reason.OUT_OF_MEMORY, problem, {"worker": peer.address})
        # A spare worker is let in, but not needed now: the status has its reason.
        return True if serves and (peer.state is PeerState.IN or peer.spare) else None
    if refusal is not None:
        problem = f"{prefix} cannot be used now: {refusal.message}"
        return HearthError(refusal.reason, problem, {"worker": peer.address})
    return None


def _late(waiting: _Waiting) -> HearthError:
    peer = waiting.peer
    wanted = "let in" if waiting.undo else "taken out"
    problem = f"worker {peer.title} was not {wanted} within {LIMIT_SECONDS:g} s: {peer.reason}"
    return HearthError(Reason.DEADLINE, problem, {"worker": peer.address})
