"""The plan this worker runs: its lease, its LoadSession, and the streams that keep both alive.

Thread-safe. Independent of gRPC: a stream is a name and a function that ends it with an error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hearth.common.errors import HearthError, Reason
from hearth.v1 import worker_pb2
from hearth.worker.lease import LeaseId, LeaseState
from hearth.worker.loading import LoadSession

log = logging.getLogger(__name__)

End = Callable[[HearthError], None]
# Time limit for a replaced plan's streams to end: a step ends at its next sync. The root asks
# `ending` before it sends a plan.
_LEAVE_SECONDS = 5.0
# How long a root may have a shard kept without a lease.
MOST_KEEP_SECONDS = 300.0


def lease_id(lease: worker_pb2.Lease) -> LeaseId:
    """Converts the message to a LeaseId."""
    return LeaseId(lease.root_id, lease.root_name, lease.epoch)


class Tenancy:
    """One lease at a time, with at most one LoadWeights and one Forward stream.

    A shard may outlast its lease: kept for the next plan of the same root, which mostly has the
    same shard (after a cable was out for a moment, say). Then its weights need not be packed again,
    and its KV pages are still there.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._state = LeaseState(grace_seconds)
        self._changed = threading.Condition()
        self._streams: dict[str, End] = {}
        self._session: LoadSession | None = None
        # How long the released lease's shard is to be kept; and, once its streams have ended, until
        # when (time.monotonic()).
        self._keep_seconds = 0.0
        self._kept_until: float | None = None
        self._closed = False
        self._reaper: threading.Timer | None = None

    def held_by(self) -> tuple[str, int]:
        """(name of the root, epoch); ("", 0) when free."""
        with self._changed:
            self._expire()
            holder = self._state.holder
            return (holder.root_name or holder.root_id, holder.epoch) if holder else ("", 0)

    def held_by_root(self, root_id: str) -> bool:
        """True if root `root_id` holds the lease."""
        with self._changed:
            holder = self._state.holder
            return holder is not None and bool(root_id) and holder.root_id == root_id

    def ending(self, seconds: float) -> bool:
        """True while a stream of a plan that has ended is open; waits for its end for `seconds`.

        Its step is still computing, and holds the memory of its shard.
        """
        with self._changed:
            return not self._changed.wait_for(self._settled, seconds)

    def _settled(self) -> bool:
        return self._state.holder is not None or not self._streams

    def kept_bytes(self) -> int:
        """Memory of a kept shard, in bytes: free for any plan that cannot use it."""
        with self._changed:
            self._expire()
            kept = self._session if self._kept_until is not None else None
            return kept.held_bytes if kept is not None else 0

    def stepping(self) -> bool:
        """True while a root's Forward stream is open."""
        with self._changed:
            return "Forward" in self._streams

    def refuse(self) -> None:
        """Refuses new streams from now on; an open Forward stream continues."""
        with self._changed:
            self._closed = True

    def refuse_closed(self) -> None:
        """Raises HearthError SHUTTING_DOWN if the worker is shutting down."""
        with self._changed:
            self._refuse_closed()

    @contextmanager
    def loading(
        self,
        begin: worker_pb2.LoadBegin,
        make: Callable[[worker_pb2.LoadBegin], LoadSession],
        end: End,
    ) -> Iterator[LoadSession]:
        """The session of `begin`'s lease while its stream is open; every plan has its own.

        Raises HearthError: WORKER_BUSY, STALE_EPOCH, STREAM_IN_USE, SHUTTING_DOWN, or `make`'s.
        """
        lease = lease_id(begin.lease)
        with self._changed:
            self._expire()
            self._refuse_closed()
            if self._state.take(lease, time.monotonic()):
                self._evict(lease)
                self._renew(begin)
            self._enter("LoadWeights", lease, end)
        try:
            if self._session is None:
                self._session = make(begin)
            elif not self._session.matches(begin):
                problem = (
                    "a different shard or manifest in the same epoch: a new plan needs a new epoch"
                )
                raise HearthError(Reason.INVALID_ARGUMENT, problem)
            yield self._session
        finally:
            self._leave("LoadWeights", lease)

    @contextmanager
    def forwarding(self, lease: LeaseId, end: End) -> Iterator[LoadSession]:
        """The loaded session of `lease`, while its Forward stream is open. Raises HearthError."""
        with self._changed:
            self._refuse_closed()
            self._state.check(lease, time.monotonic())
            session = self._session
            if session is None or not session.complete:
                raise HearthError(Reason.NOT_LOADED, "the plan's weights are not all loaded yet")
            self._enter("Forward", lease, end)
        try:
            yield session
        finally:
            self._leave("Forward", lease)

    def release(self, lease: LeaseId, keep_seconds: float = 0.0) -> None:
        """Ends the lease, if any, with its streams, and frees its shard. Raises HearthError.

        keep_seconds: keeps the shard for so long for the same root, if it is complete.
        """
        with self._changed:
            self._expire()
            if self._state.holder is None:
                return
            self._state.check(lease, time.monotonic())
            log.info("root %s released this worker", self._state.holder.root_name)
            self._keep_seconds = min(keep_seconds, MOST_KEEP_SECONDS)
            self._end(HearthError(Reason.CANCELLED, "the root released this worker"))

    def close(self, seconds: float = 5.0) -> None:
        """Ends everything and refuses new streams: the worker shuts down.

        Waits up to `seconds` for streams to end: a thread still computing when the interpreter
        exits would crash the process.
        """
        with self._changed:
            self._closed = True
            self._end(HearthError(Reason.SHUTTING_DOWN, "this worker is shutting down"))
            self._changed.wait_for(lambda: not self._streams, seconds)

    def _end(self, error: HearthError) -> None:
        self._state.end()
        self._end_streams(error)
        if not self._streams:  # else the last stream to end retires it
            self._retire()

    def _retire(self) -> None:
        """Keeps the shard of a lease that has ended if its root asked for that; else frees it."""
        seconds, self._keep_seconds = self._keep_seconds, 0.0
        if self._session is not None and seconds > 0 and self._session.sound and not self._closed:
            self._kept_until = time.monotonic() + seconds
            self._reap_later(seconds)
        else:
            self._free()

    def _renew(self, begin: worker_pb2.LoadBegin) -> None:
        """Lets the session of an earlier plan be this one's where it can; else frees it."""
        self._kept_until, self._keep_seconds = None, 0.0
        session = self._session
        if session is None:
            return
        same_root = session.begin.lease.root_id == begin.lease.root_id
        if same_root and session.sound and session.matches(begin):
            log.info("the shard of epoch %d goes on", session.begin.lease.epoch)
            session.begin = begin
        else:
            self._free()

    def _evict(self, lease: LeaseId) -> None:
        """Waits for the end of the previous plan's streams: memory never holds two plans."""
        self._end_streams(
            HearthError(Reason.STALE_EPOCH, f"replaced by epoch {lease.epoch} of the same root")
        )
        if not self._changed.wait_for(lambda: not self._streams, _LEAVE_SECONDS):
            if self._state.holder == lease:
                self._state.end()
            raise HearthError(Reason.WORKER_BUSY, "busy: the previous plan's step is still running")
        if self._state.holder != lease:
            raise HearthError(
                Reason.STALE_EPOCH, "replaced while waiting for the previous plan to end"
            )

    def _end_streams(self, error: HearthError) -> None:
        for end in self._streams.values():
            end(error)

    def _free(self) -> None:
        self._kept_until = None
        if self._session is not None:
            self._session.close()
            self._session = None

    def _enter(self, name: str, lease: LeaseId, end: End) -> None:
        if name in self._streams:
            problem = f"a {name} stream of this lease is open already"
            raise HearthError(Reason.STREAM_IN_USE, problem)
        self._streams[name] = end
        self._state.stream_opened(lease)

    def _leave(self, name: str, lease: LeaseId) -> None:
        with self._changed:
            self._streams.pop(name, None)
            if self._state.holder == lease:
                if self._session is None:
                    self._state.end()  # failed before it had a session to keep
                else:
                    self._state.stream_closed(lease, time.monotonic())
                    self._reap_later(self._state.grace_seconds)
            elif self._state.holder is None and not self._streams:
                self._retire()
            self._changed.notify_all()

    def _reap_later(self, seconds: float) -> None:
        def reap() -> None:
            with self._changed:
                self._expire()

        timer = threading.Timer(seconds + 0.05, reap)
        timer.daemon = True
        if self._reaper is not None:
            self._reaper.cancel()  # each timer is a thread, and streams may end in quick succession
        self._reaper = timer
        timer.start()

    def _expire(self) -> None:
        holder = self._state.holder
        if self._state.expire(time.monotonic()) and holder is not None:
            log.info("root %s went away: its part of the model is freed", holder.root_name)
            self._free()
        if self._kept_until is not None and time.monotonic() >= self._kept_until:
            log.info("the part of the model that was kept is freed")
            self._free()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise HearthError(Reason.SHUTTING_DOWN, "this worker is shutting down")
