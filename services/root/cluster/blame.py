"""Works out which rank broke the mesh from the ranks' reports. Pure.

A rank that loses a connection ends its stream, and with it its connections to all others, which
then report that they lost it. So a rank that sent a report is not lost; its report is the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason


@dataclass(frozen=True, slots=True)
class Worker:
    """A rank's worker, as errors name it."""

    address: str
    name: str


def culprits(unheard: Mapping[int, int], by: int, rank: int) -> tuple[int, int]:
    """(worker, 0): it is lost. (worker, other): both are there, and do not reach each other.

    unheard: for each rank that sent a report, the rank it no longer hears. Rank 0 is the root,
    which also hears the workers by other ways. by and rank: the first report.
    """
    seen = {by}
    while rank in unheard and rank not in seen and unheard[rank] != rank:
        seen.add(rank)
        by, rank = rank, unheard[rank]
    if by == 0 or rank == 0 or by == rank:
        return (by or rank, 0)
    if rank not in unheard and unheard.get(0) == rank:
        return (rank, 0)
    return (min(by, rank), max(by, rank))


def explain(
    workers: Sequence[Worker],
    reports: Mapping[int, HearthError],
    own: int,
    by: int,
    rank: int,
    problem: str,
) -> HearthError:
    """The result of `culprits` as an error that names the workers.

    workers: in rank order, from rank 1. reports: why each rank's stream ended. own: the rank that
    the root does not hear; 0 for none. by, rank, problem: the first report and its text.
    """
    unheard = {0: own} if own else {}
    for number, report in sorted(reports.items()):
        if report.reason != Reason.PEER_LOST:
            return report  # it is about the rank itself, so it needs no guess
        unheard[number] = rank_of(report)
    one, other = culprits(unheard, by, rank)
    if not 1 <= one <= len(workers) or other > len(workers):
        return HearthError(Reason.WORKER_LOST, f"the mesh broke: {problem}")
    worker = workers[one - 1]
    if not other:
        message = f"worker {worker.name} was lost: {problem}"
        return HearthError(Reason.WORKER_LOST, message, {"worker": worker.address})
    peer = workers[other - 1]
    known = reports.get(one) or reports.get(other)
    message = (
        f"worker {worker.name} and worker {peer.name} do not reach each other, though the root "
        f"reaches both: {known.message if known is not None else problem}"
    )
    facts = {"worker": worker.address, "peer": peer.address}
    return HearthError(Reason.PEER_LOST, message, facts)


def rank_of(error: HearthError) -> int:
    """The rank that an error names; 0 when it names none."""
    text = error.metadata.get("rank", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
