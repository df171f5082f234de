"""State of the lease on a worker. Pure: the caller provides the time, in seconds, and the lock.

One root holds a worker at a time; its epochs only increase. A lease without an open stream ends
after a grace period.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason

_MAX_TEXT = 200


@dataclass(frozen=True)
class LeaseId:
    """One plan of one root."""

    root_id: str
    root_name: str
    epoch: int


class LeaseState:
    """Free, or held by one LeaseId with a number of open streams.

    Invariant: `_idle_since` is set if and only if the lease is held and no stream is open.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self.holder: LeaseId | None = None
        self._streams = 0
        self._idle_since: float | None = None

    def take(self, lease: LeaseId, now: float) -> bool:
        """Makes `lease` the holder. True for a new plan, False if it continues the held one.

        Raises HearthError WORKER_BUSY (another root holds the worker), STALE_EPOCH or
        INVALID_ARGUMENT. Streams of a replaced plan no longer count.
        """
        _check(lease)
        self.expire(now)
        if self.holder is not None:
            self._refuse_stranger(lease)
            self._refuse_older(lease)
            if lease.epoch == self.holder.epoch:
                return False
        self.holder = lease
        self._streams = 0
        self._idle_since = now
        return True

    def check(self, lease: LeaseId, now: float) -> None:
        """Raises HearthError unless `lease` is the holder: NOT_LOADED, WORKER_BUSY, STALE_EPOCH."""
        _check(lease)
        self.expire(now)
        if self.holder is None:
            raise HearthError(
                Reason.NOT_LOADED, "no plan is loaded (the lease has ended): load the weights again"
            )
        self._refuse_stranger(lease)
        self._refuse_older(lease)
        if lease.epoch > self.holder.epoch:
            problem = (
                f"epoch {lease.epoch} is not loaded; this worker has epoch {self.holder.epoch}"
            )
            raise HearthError(Reason.NOT_LOADED, problem)

    def stream_opened(self, lease: LeaseId) -> None:
        """Counts an open stream, which keeps the lease; `lease` must be the holder."""
        if self.holder == lease:
            self._streams += 1
            self._idle_since = None

    def stream_closed(self, lease: LeaseId, now: float) -> None:
        """Uncounts a stream; the grace period starts when the last one ends."""
        if self.holder == lease and self._streams:
            self._streams -= 1
            if not self._streams:
                self._idle_since = now

    def end(self) -> None:
        """Frees the worker immediately."""
        self.holder = None
        self._streams = 0
        self._idle_since = None

    def expire(self, now: float) -> bool:
        """Frees the worker if the grace period is over; returns True if it did."""
        if self._idle_since is None or now - self._idle_since < self.grace_seconds:
            return False
        self.end()
        return True

    def _refuse_stranger(self, lease: LeaseId) -> None:
        if self.holder is not None and lease.root_id != self.holder.root_id:
            raise HearthError(
                Reason.WORKER_BUSY,
                f"busy: root {self.holder.root_name!r} holds this worker (epoch "
                f"{self.holder.epoch}); stop that root, or use another worker",
                {"heldBy": self.holder.root_name, "epoch": self.holder.epoch},
            )

    def _refuse_older(self, lease: LeaseId) -> None:
        if self.holder is not None and lease.epoch < self.holder.epoch:
            raise HearthError(
                Reason.STALE_EPOCH,
                f"epoch {lease.epoch} is over: this worker has epoch {self.holder.epoch}",
                {"epoch": lease.epoch, "currentEpoch": self.holder.epoch},
            )


def _check(lease: LeaseId) -> None:
    if not lease.root_id or len(lease.root_id) > _MAX_TEXT or len(lease.root_name) > _MAX_TEXT:
        problem = f"a lease needs a root_id and names of at most {_MAX_TEXT} characters"
        raise HearthError(Reason.INVALID_ARGUMENT, problem)
    if not lease.root_name.isprintable() or not lease.root_id.isprintable():
        problem = "a lease's root_id and root_name have printable characters alone"
        raise HearthError(Reason.INVALID_ARGUMENT, problem)
    if lease.epoch < 1:
        raise HearthError(Reason.INVALID_ARGUMENT, "a lease's epoch counts from 1")
