"""Works out which rank of a stage broke its mesh from the ranks' reports. Pure.

A rank that loses a connection ends its stream and its connections to all other ranks, which then
report that they lost it. So a rank that sent a report is not lost: its report is the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason
from hearth.root.membership.apart import ROOT


@dataclass(frozen=True, slots=True)
class Worker:
    """A rank's worker, as errors name it."""

    rank: int
    address: str
    name: str


def culprits(
    unheard: Mapping[int, int], by: int, rank: int, root: int | None = 0
) -> tuple[int, ...]:
    """The lost rank; or two ranks that are both alive but do not reach each other, the root first.

    unheard: for each rank that sent a report, the rank that it no longer receives from. by and
    rank: the first report. root: the root's rank, None in a stage without it; the root also
    receives from the workers by gRPC.
    """
    seen = {by}
    while rank in unheard and rank not in seen and unheard[rank] != rank:
        seen.add(rank)
        by, rank = rank, unheard[rank]
    if by == rank:
        return (by,)
    if root is not None and root in (by, rank):
        other = rank if by == root else by
        # A rank that sent a report of the root is alive.
        return (root, other) if unheard.get(other) == root else (other,)
    if rank not in unheard and root is not None and unheard.get(root) == rank:
        return (rank,)
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

    workers: the ranks of one stage; rank 0 is the root if no worker has it. reports: the error that
    ended each rank's stream. own: the rank that the root does not receive from; 0 for none. by,
    rank, problem: the first report and its text.
    """
    by_rank = {worker.rank: worker for worker in workers}
    root = None if 0 in by_rank else 0
    unheard = {0: own} if own else {}
    for number, report in sorted(reports.items()):
        if report.reason != Reason.PEER_LOST:
            return report  # about the rank itself: nothing to work out
        unheard[number] = rank_of(report)
    ranks = culprits(unheard, by, rank, root)
    if root is not None and len(ranks) == 2 and root in ranks:
        apart = by_rank.get(ranks[1])
        if apart is not None:
            return apart_from_root(apart, problem)
    if not all(found in by_rank for found in ranks):
        return HearthError(Reason.WORKER_LOST, f"the mesh broke: {problem}")
    worker, *peers = (by_rank[found] for found in ranks)
    if not peers:
        message = f"worker {worker.name} was lost: {problem}"
        return HearthError(Reason.WORKER_LOST, message, {"worker": worker.address})
    peer = peers[0]
    known = reports.get(worker.rank) or reports.get(peer.rank)
    message = (
        f"the mesh between worker {worker.name} and worker {peer.name} does not work, though the "
        f"root reaches both: {known.message if known is not None else problem}"
    )
    facts = {"worker": worker.address, "peer": peer.address}
    return HearthError(Reason.PEER_LOST, message, facts)


def apart_from_root(worker: Worker, problem: str) -> HearthError:
    """Error for a worker that gRPC connects to the root, and the mesh does not."""
    message = (
        f"the mesh between the root and worker {worker.name} does not work, though gRPC does: "
        f"{problem}"
    )
    return HearthError(Reason.PEER_LOST, message, {"worker": worker.address, "peer": ROOT})


def rank_of(error: HearthError) -> int:
    """The rank that an error names; 0 if it names none."""
    text = error.metadata.get("rank", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
