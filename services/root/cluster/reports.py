"""Collects the ranks' reports when a mesh breaks, and works out the cause once."""

import threading
from collections.abc import Sequence

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.blame import Worker, apart_from_root, explain
from hearth.root.cluster.links import WorkerLink

# Time to wait for reports of other ranks after the first one.
REPORT_SECONDS = 0.5


class Reports:
    """The reports about the mesh. Thread-safe: holds only its own lock, makes no calls."""

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
                self._reports.setdefault(rank, error.copy())  # without the frames of its call
                self._changed.notify_all()

    def unheard(self, rank: int) -> None:
        """Record the rank from which the root itself no longer receives."""
        with self._changed:
            self._own = rank

    def settle(self, cause: HearthError) -> None:
        """End the wait: the cause is known from elsewhere. The first cause counts."""
        with self._changed:
            self._cause = self._cause or cause.copy()
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

    def silent(self, cause: HearthError) -> Worker | None:
        """The one worker of those that a cause names which sent no report; None if not one."""
        named = {cause.metadata.get("worker"), cause.metadata.get("peer")}
        with self._changed:
            silent = [
                worker
                for worker in self._workers
                if worker.address in named and worker.rank not in self._reports
            ]
        return silent[0] if len(silent) == 1 else None

    def rank(self, address: str) -> int:
        """The rank of the worker at `address`; 0 if it is not in the stage."""
        ranks = {worker.address: worker.rank for worker in self._workers}
        return ranks.get(address, 0)

    def _certain(self) -> bool:
        about_itself = any(r.reason != Reason.PEER_LOST for r in self._reports.values())
        everyone = len(self._reports) == len(self._workers)
        return self._cause is not None or about_itself or everyone


def refine(
    links: Sequence[WorkerLink],
    reports: Reports,
    cause: HearthError,
    problem: str,
    late: float | None = None,
) -> HearthError:
    """The cause of a broken mesh, once more, by what gRPC knows of the worker that it names.

    late: the limit in seconds that a step exceeded. All ranks that are alive have sent a report
    then, so one that has not, and whose stream is open, hangs. In time, only the mesh lost it.
    """
    worker = reports.silent(cause)
    link = next((each for each in links if worker and each.address == worker.address), None)
    if worker is None or link is None or link.ended is not None:
        return cause
    if late is not None:
        message = (
            f"worker {worker.name} did not answer a step within {late:g} s (--step-seconds), "
            f"though gRPC reaches it: {problem}"
        )
        return HearthError(Reason.WORKER_UNFIT, message, {"worker": worker.address})
    return apart_from_root(worker, problem) if cause.reason == Reason.WORKER_LOST else cause
