"""Collects the ranks' reports when a mesh breaks, and answers once with the cause."""

import threading
from collections.abc import Sequence

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.blame import Worker, explain

# How long to wait for the reports of other ranks after the first one.
REPORT_SECONDS = 0.5


class Reports:
    """The reports about one stage's mesh. Thread-safe; holds only its own lock, calls nobody."""

    def __init__(self, workers: Sequence[Worker], seconds: float = REPORT_SECONDS) -> None:
        """workers: of the stage. seconds: how long `cause` waits at most."""
        self._workers = tuple(workers)
        self._seconds = seconds
        self._changed = threading.Condition()
        # Why each rank's stream ended, where the root did not end it.
        self._reports: dict[int, HearthError] = {}
        self._own = 0
        self._cause: HearthError | None = None

    def add(self, address: str, error: HearthError) -> None:
        """Record why the stream of the worker at `address` ended."""
        rank = self.rank(address)
        if rank:
            with self._changed:
                self._reports.setdefault(rank, error)
                self._changed.notify_all()

    def unheard(self, rank: int) -> None:
        """Record the rank that the root itself does not hear any more."""
        with self._changed:
            self._own = rank

    def settle(self, cause: HearthError) -> None:
        """End the search: the cause is known by another way. The first cause counts."""
        with self._changed:
            self._cause = self._cause or cause
            self._changed.notify_all()

    def cause(self, by: int, rank: int, problem: str) -> HearthError:
        """The cause of a broken mesh, after rank `by` reported that it does not hear `rank`.

        Blocks until the reports that are in leave no doubt, or the time is over.
        """
        with self._changed:
            self._changed.wait_for(self._certain, self._seconds)
            if self._cause is None:
                self._cause = explain(self._workers, self._reports, self._own, by, rank, problem)
            return self._cause

    def rank(self, address: str) -> int:
        """The rank of the worker at `address`; 0 where it is none of these."""
        ranks = {worker.address: worker.rank for worker in self._workers}
        return ranks.get(address, 0)

    def _certain(self) -> bool:
        about_itself = any(r.reason != Reason.PEER_LOST for r in self._reports.values())
        everyone = len(self._reports) == len(self._workers)
        return self._cause is not None or about_itself or everyone
