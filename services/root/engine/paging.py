"""Moves KV pages between the nodes' memory and their disks, between two steps.

Pages are stored a few at a time after the step that filled them. Pages to fetch are asked for again
between steps, until every node has its part: meanwhile the steps of other sequences go on.
"""

import time
from collections.abc import Sequence
from typing import Protocol

from hearth.root.scheduling.disk import Disk, Move
from hearth.root.scheduling.scheduler import Scheduler

# Pages stored between two steps: a step fills max_step_tokens / page_size of them, 4 by default.
_STORES = 8
# Nodes wait so long for the first page, and the engine for room to store, where nothing else runs.
_WAIT_SECONDS = 0.05
# How long the last pages may take when the engine ends.
_END_SECONDS = 5.0
# A page that does not come for so long after the last one that came is computed.
_FETCH_SECONDS = 10.0


class Archive(Disk, Protocol):
    """KV pages on the nodes' disks; implemented by `hearth.root.cluster.archive`."""

    def room(self, seconds: float = 0.0) -> bool:
        """True if another page can be stored; waits up to `seconds` for that."""

    def store(self, moves: Sequence[Move]) -> None:
        """Lets every node store its part of the pages. Raises HearthError as a step does."""

    def fetch(self, moves: Sequence[Move], seconds: float, reset: bool) -> list[bool | None]:
        """Of each page: True if it is there, False if it will not come, None if not yet.

        seconds: how long to wait for the first. reset: the nodes forget their page tables before.
        Raises HearthError as a step does.
        """


class Paging:
    """Makes the scheduler's moves. Belongs to the engine's thread."""

    def __init__(self, archive: Archive | None) -> None:
        self._archive = archive
        # When a page came, or the first was asked for: time.monotonic().
        self._came: float | None = None

    @property
    def disk(self) -> Disk | None:
        """Of the scheduler."""
        return self._archive

    def fetch(self, scheduler: Scheduler, wait: bool = False) -> bool:
        """Asks for the pages to fetch; True if there were any. No step may be in flight.

        wait: nothing else can run before. Raises HearthError as a step does.
        """
        moves = scheduler.sharing.moves
        wanted = moves.fetches()
        if self._archive is None or not wanted:
            self._came = None
            return False
        now = time.monotonic()
        if self._came is None:
            self._came = now
        seconds = _WAIT_SECONDS if wait else 0.0
        states = self._archive.fetch(wanted, seconds, scheduler.take_reset())
        late = now - self._came > _FETCH_SECONDS
        for move, state in zip(wanted, states, strict=True):
            if state is not None or late:
                moves.fetched(move, bool(state))
                self._came = now
        return True

    def store(self, scheduler: Scheduler, wait: bool = False) -> bool:
        """Stores some of the pages that are due; True if there are more. Raises HearthError.

        wait: nothing else can run, so it may wait for room.
        """
        moves = scheduler.sharing.moves
        if self._archive is None or not moves.storing:
            return False
        if self._archive.room(_WAIT_SECONDS if wait else 0.0):
            self._archive.store(moves.stores(_STORES))
        return moves.storing

    def store_rest(self, scheduler: Scheduler) -> None:
        """Stores what is due, for a few seconds at most: the engine ends. Raises HearthError."""
        until = time.monotonic() + _END_SECONDS
        while self.store(scheduler, wait=True) and time.monotonic() < until:
            pass
