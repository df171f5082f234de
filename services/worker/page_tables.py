"""Page tables and slots of a plan's sequences, kept from step to step and updated by each step.

A step carries only the changes of each table (SequenceStep in worker.proto): in decode one page
in every `page_size` steps. A slot holds a sequence's state of recurrent mixers; a sequence has one
for as long as it has a table. Used by the worker, and by the root for its own shard. The tables end
with a plan. Which pages are full stays known for as long as the shard, whose next plan may go on
with them.
"""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hearth.common.errors import HearthError, Reason

Table: TypeAlias = npt.NDArray[np.uint32]

# A table grows by at least this many pages at a time.
_LEAST_GROWTH = 16


class PageTables:
    """Tables of at most `max_sequences` sequences, each of at most `max_pages` pages.

    page_size: positions of a page. Sequences may share pages, once these are full.

    After an error the plan has failed and the tables must not be used again.
    """

    def __init__(self, max_sequences: int, max_pages: int, page_size: int) -> None:
        self._max_sequences = max_sequences
        self._max_pages = max_pages
        self._page_size = page_size
        # Pages of which every position was written since the last reset.
        self._full: set[int] = set()
        # Sequence id -> (array with spare room, pages in use).
        self._tables: dict[int, tuple[Table, int]] = {}
        # Sequence id -> its slot; the slots below `_high` that no sequence has, a heap.
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._high = 0

    def __len__(self) -> int:
        return len(self._tables)

    def forget(self, reset: bool, ended: Iterable[int]) -> None:
        """Forgets all tables if `reset`, then the tables of `ended`.

        Raises HearthError BAD_STEP if an ended sequence has no table.
        """
        if reset:
            self._full.clear()
            self.end_plan()
        for seq_id in ended:
            if self._tables.pop(seq_id, None) is None:
                raise _bad(
                    f"sequence {seq_id} ended but has no page table; {len(self._tables)} have one"
                )
            heappush(self._free, self._slots.pop(seq_id))

    def end_plan(self) -> None:
        """Forgets all tables; full pages stay full."""
        self._tables.clear()
        self._slots.clear()
        self._free.clear()
        self._high = 0

    def step(
        self, seq_id: int, position: int, rows: int, kept: int, new_pages: Sequence[int]
    ) -> Table:
        """The table of a sequence in a step, after its change (see `change`).

        Pages that the sequence takes over must be full. Raises HearthError BAD_STEP.
        """
        table = self.change(seq_id, kept, new_pages)
        size = self._page_size
        first, end = position // size, position + rows
        taken = table[kept:first].tolist()
        empty = next((page for page in taken if page not in self._full), None)
        if empty is not None:
            raise _bad(f"sequence {seq_id} begins after page {empty}, which was not written")
        if position % size and first >= kept:
            raise _bad(f"sequence {seq_id} begins at position {position}, within a page of {size}")
        written = table[first : -(-end // size)].tolist()
        self._full.difference_update(written)
        self._full.update(written[: end // size - first])
        return table

    def fill(self, page: int) -> None:
        """Notes that every position of a page was written. Raises HearthError BAD_STEP."""
        if page >= self._max_pages:
            raise _bad(f"page {page} of a KV cache of {self._max_pages}")
        self._full.add(page)

    def release(self, first: int) -> None:
        """Notes that page `first` and those after it lose their content."""
        self._full = {page for page in self._full if page < first}

    def change(self, seq_id: int, kept: int, new_pages: Sequence[int]) -> Table:
        """Keeps the first `kept` pages of a sequence's table and appends `new_pages`: u32 [n].

        The array is valid until the sequence's next change. Raises HearthError BAD_STEP.
        """
        table, length = self._tables.get(seq_id, (_EMPTY, 0))
        if kept > length:
            raise _bad(f"sequence {seq_id} keeps {kept} pages of a table of {length}")
        size = kept + len(new_pages)
        if size > self._max_pages:
            raise _bad(f"sequence {seq_id} has {size} pages, the plan allows {self._max_pages}")
        if new_pages and max(new_pages) >= self._max_pages:
            raise _bad(
                f"sequence {seq_id} has page {max(new_pages)} of a KV cache of {self._max_pages}"
            )
        if seq_id not in self._tables and len(self._tables) >= self._max_sequences:
            raise _bad(
                f"sequence {seq_id} needs page table {len(self._tables) + 1}, "
                f"the plan allows {self._max_sequences}"
            )
        if seq_id not in self._slots:
            self._slots[seq_id] = self._take_slot()
        if size > len(table):
            room = np.empty(min(self._max_pages, size + max(size // 2, _LEAST_GROWTH)), np.uint32)
            room[:kept] = table[:kept]
            table = room
        if new_pages:
            table[kept:size] = new_pages
        self._tables[seq_id] = (table, size)
        return table[:size]

    def slot(self, seq_id: int) -> int:
        """The slot of a sequence that has a table: below `max_sequences`, and no other's."""
        return self._slots[seq_id]

    def _take_slot(self) -> int:
        """The lowest free slot, so that few have memory."""
        if self._free:
            return heappop(self._free)
        self._high += 1
        return self._high - 1


_EMPTY: Table = np.empty(0, np.uint32)


def _bad(problem: str) -> HearthError:
    return HearthError(Reason.BAD_STEP, f"invalid step: {problem}")
