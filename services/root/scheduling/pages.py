"""Owners of the pages of the KV cache.

Pure bookkeeping of page numbers, without memory. The root numbers the pages, and the numbers are
the same on every node, so one pool serves the whole cluster.
"""

from collections.abc import Iterable
from heapq import heappop, heappush


class OutOfPages(Exception):  # noqa: N818  (a condition that the scheduler handles, not a fault)
    """Fewer pages are free than requested; nothing was allocated."""


class PagePool:
    """Page numbers 0 .. pages - 1, each free or owned by exactly one sequence.

    Invariants (see `check`): no page has two owners; free and owned pages together are all pages.
    """

    def __init__(self, pages: int) -> None:
        if pages < 1:
            raise ValueError(f"a KV cache needs at least 1 page, not {pages}")
        self.pages = pages
        # A heap: the lowest numbers are used first, so that the memory of high ones can be given
        # back after a burst.
        self._free = list(range(pages))
        self._owner: dict[int, int] = {}
        # One more than the highest page owned since `restart_mark`.
        self._mark = 0

    @property
    def free(self) -> int:
        """Pages without an owner."""
        return len(self._free)

    def allocate(self, owner: int, count: int) -> tuple[int, ...]:
        """Allocates `count` pages to `owner`, or none and raises OutOfPages."""
        if count < 0:
            raise ValueError(f"cannot allocate {count} pages")
        if count > len(self._free):
            raise OutOfPages(f"{count} pages requested, {len(self._free)} of {self.pages} free")
        taken = tuple(heappop(self._free) for _ in range(count))
        for page in taken:
            self._owner[page] = owner
        if taken:
            self._mark = max(self._mark, taken[-1] + 1)
        return taken

    def restart_mark(self) -> int:
        """One more than the highest page owned since the last call; 0 if none was."""
        mark, self._mark = self._mark, max(self._owner, default=-1) + 1
        return mark

    @property
    def used(self) -> bool:
        """True if a page was owned since `restart_mark`."""
        return self._mark > 0

    def release(self, owner: int, pages: Iterable[int]) -> None:
        """Frees `pages` of `owner`; ValueError if it does not own one of them."""
        for page in pages:
            held_by = self._owner.get(page)
            if held_by != owner:
                raise ValueError(f"page {page} belongs to {held_by}, but {owner} released it")
            del self._owner[page]
            heappush(self._free, page)

    def check(self, held: dict[int, tuple[int, ...]]) -> None:
        """Compares the pool with the pages that the sequences hold: {owner: pages}.

        Raises RuntimeError naming the difference; called when idle and by tests.
        """
        claimed: dict[int, int] = {}
        for owner, pages in held.items():
            for page in pages:
                if page in claimed:
                    raise RuntimeError(f"page {page} is held by both {claimed[page]} and {owner}")
                claimed[page] = owner
        if claimed != self._owner:
            differing = sorted(set(claimed.items()) ^ set(self._owner.items()))
            raise RuntimeError(f"page owners differ between sequences and pool: {differing[:8]}")
        together = sorted([*self._free, *self._owner])
        if together != list(range(self.pages)):
            raise RuntimeError(
                f"{len(self._free)} free and {len(self._owner)} owned pages are not the "
                f"{self.pages} pages of the pool"
            )
