"""Collects the ranks' reports when a mesh breaks, and works out the cause once."""

import threading
from collections.abc import Sequence

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.blame import Worker, explain

# Time to wait for reports of other ranks after the first one.
REPORT_SECONDS = 0.5


class Reports:
    """The reports about one stage's mesh. Thread-safe: holds only its own lock, makes no calls."""

    def __init__(self, workers: Sequence[Worker], seconds: float = REPORT_SECONDS) -> None:
        """workers: of the stage. seconds: how long `cause` waits at most."""
        self._workers = tuple(workers)
        self._seconds = seconds
        self._changed = threading.Condition()
        # The error that ended each rank's stream, unless the root ended it.
        self._reports: dict[int, HearthError] = {}
        self._own = 0
        self._cause: HearthError | None = None

    def add(self, address: str, error: HearthError) -> None:
        """Record the error that ended the stream of the worker at `address`."""
        rank = self.rank(address)
        if rank:
            with self._changed:
                self._reports.setdefault(rank, error)
                self._changed.notify_all()

    def unheard(self, rank: int) -> None:
        """Record the rank from which the root itself no longer receives."""
        with self._changed:
            self._own = rank

    def settle(self, cause: HearthError) -> None:
        """End the wait: the cause is known from elsewhere. The first cause counts."""
        with self._changed:
            self._cause = self._cause or cause
            self._changed.notify_all()

    def cause(self, by: int, rank: int, problem: str) -> HearthError:
        """The cause of a broken mesh, after rank `by` reported that it lost `rank`.

        Blocks until the reports are conclusive, or the time is over.
        """
        with self._changed:
            self._changed.wait_for(self._certain, self._seconds)
            if self._cause is None:
                self._cause = explain(self._workers, self._reports, self._own, by, rank, problem)
            return self._cause

    def rank(self, address: str) -> int:
        """The rank of the worker at `address`; 0 if it is not in the stage."""
        ranks = {worker.address: worker.rank for worker in self._workers}
        return ranks.get(address, 0)

    def _certain(self) -> bool:
        about_itself = any(r.reason != Reason.PEER_LOST for r in self._reports.values())
        everyone = len(self._reports) == len(self._workers)
        return self._cause is not None or about_itself or everyone
