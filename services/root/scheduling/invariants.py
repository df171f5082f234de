"""Integrity check of the scheduler's state, for idle times and tests."""

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items

from hearth.root.scheduling.batch import Batch, Limits
from hearth.root.scheduling.disk import DiskMoves
from hearth.root.scheduling.pages import PagePool
from hearth.root.scheduling.sequence import Sequence


def check(
    limits: Limits,
    pool: PagePool,
    running: Items[Sequence],
    waiting: Iterable[Sequence],
    known: Mapping[int, Sequence],
    zombies: Mapping[int, Sequence],
    flights: Iterable[Batch],
    moves: DiskMoves,
) -> None:
    """Raises RuntimeError naming the first inconsistency.

    Pages and their holders agree, and a page with several is full in each of them. Running
    sequences are older than waiting ones. Each sequence counts exactly its rows and batches in
    flight, and holds the pages that they use.
    """
    holders = {**known, **zombies}
    if len(holders) != len(known) + len(zombies):
        raise RuntimeError(f"ended sequences are still known: {sorted({*known} & {*zombies})}")
    pool.check({seq_id: s.pages for seq_id, s in holders.items()} | dict(moves.held))
    taken = sum(s.save is not None for s in holders.values())
    pool.prefix.snapshots.check(taken + moves.taken)
    shared = Counter(page for s in holders.values() for page in s.pages)
    for s in holders.values():
        for page in s.pages[s.computed // limits.page_size :]:
            if shared[page] > 1:
                raise RuntimeError(f"page {page} is shared but not full: {s.story()}")
    order = [s.arrival for s in [*running, *waiting]]
    if order != sorted(set(order)):
        raise RuntimeError(f"sequences are out of order: {order}")
    if {id(s) for s in [*running, *waiting]} != set(map(id, known.values())):
        raise RuntimeError("a known sequence is neither running nor waiting")
    if len(running) > limits.max_running:
        raise RuntimeError(f"{len(running)} sequences run, the limit is {limits.max_running}")
    rows = dict.fromkeys(holders, 0)
    batches = dict.fromkeys(holders, 0)
    for step in (step for batch in flights for step in batch.sequences):
        if step.seq_id not in holders:
            raise RuntimeError(f"sequence {step.seq_id} is in flight but not known")
        rows[step.seq_id] += len(step.tokens)
        batches[step.seq_id] += 1
    for s in holders.values():
        counted = s.in_flight == batches[s.seq_id] and s.scheduled - s.computed == rows[s.seq_id]
        if not counted or len(s.pages) * limits.page_size < s.scheduled or len(s.pages) < s.table:
            raise RuntimeError(f"{rows[s.seq_id]} rows are in flight, but {s.story()}")
    for s in running:
        if s.pending < 1 and not s.in_flight:
            raise RuntimeError(f"nothing is left to compute: {s.story()}")
    for s in waiting:
        if s.pages or s.scheduled or s.in_flight:
            raise RuntimeError(f"a waiting sequence holds pages {s.pages}: {s.story()}")
    for s in zombies.values():
        if not s.in_flight:
            raise RuntimeError(f"the pages of an ended sequence were not freed: {s.story()}")
