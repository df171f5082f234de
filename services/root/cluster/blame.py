"""Whose fault a broken mesh is, from what each rank says of the others. Pure.

A rank that loses a connection ends its stream, and with it its connections to all others, who then
say that they lost it. So whoever said something itself is not lost; what it said is the reason.
"""

from collections.abc import Mapping, Sequence

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.links import WorkerLink


def culprits(said: Mapping[int, int], by: int, rank: int) -> tuple[int, int]:
    """(worker, 0): it is lost. (worker, worker): both are there, and do not reach each other.

    said: whom each rank does not hear, of those that said so; rank 0 is the root, which hears of
    everyone by other ways too. by and rank: who said so first, and of whom.
    """
    seen = {by}
    while rank in said and rank not in seen and said[rank] != rank:
        seen.add(rank)
        by, rank = rank, said[rank]
    if by == 0 or rank == 0 or by == rank:
        return (by or rank, 0)
    if rank not in said and said.get(0) == rank:
        return (rank, 0)
    return (min(by, rank), max(by, rank))


def explain(links: Sequence[WorkerLink], own: int, by: int, rank: int, problem: str) -> HearthError:
    """What `culprits` finds, as an error that names the workers; `problem` is what `by` said.

    links: of the workers in rank order. own: whom the root does not hear; 0: nobody.
    """
    said = {0: own} if own else {}
    for index, link in enumerate(links, 1):
        if link.ended is None:
            continue
        if link.ended.reason != Reason.PEER_LOST:
            return link.ended  # it does not guess
        said[index] = rank_of(link.ended)
    one, other = culprits(said, by, rank)
    if not 1 <= one <= len(links) or other > len(links):
        return HearthError(Reason.WORKER_LOST, f"the mesh broke: {problem}")
    link = links[one - 1]
    if not other:
        message = f"worker {link.name} was lost: {problem}"
        return HearthError(Reason.WORKER_LOST, message, {"worker": link.address})
    peer = links[other - 1]
    ended = link.ended or peer.ended
    problem = problem if ended is None else ended.message
    message = (
        f"worker {link.name} and worker {peer.name} do not reach each other, though the root "
        f"reaches both: {problem}"
    )
    return HearthError(Reason.PEER_LOST, message, {"worker": link.address, "peer": peer.address})


def rank_of(error: HearthError) -> int:
    """The rank that an error names; 0 when it names none."""
    text = error.metadata.get("rank", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
