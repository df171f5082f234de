"""Holders of the pages of the KV cache.

Pure bookkeeping of page numbers, without memory. The root numbers the pages, and the numbers are
the same on every node, so one pool serves the whole cluster.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from heapq import heappop, heappush

from hearth.root.scheduling.prefix import PrefixIndex


class OutOfPages(Exception):  # noqa: N818  (a condition that the scheduler handles, not a fault)
    """Fewer pages are available than requested; nothing was allocated."""


class PagePool:
    """Page numbers 0 .. pages - 1, each free, held by sequences, or kept for its prefix.

    A page in the prefix index that no sequence holds any more is kept until another sequence holds
    it, or until its place is needed: the one unused for longest goes first.

    Invariants (see `check`): free, held and kept pages together are all pages, and no page is two
    of these; pages in the index are held or kept, and kept pages are in the index.
    """

    def __init__(self, pages: int, secret: bytes | None = None, snapshots: int = 0) -> None:
        """secret, snapshots: of the prefix index."""
        if pages < 1:
            raise ValueError(f"a KV cache needs at least 1 page, not {pages}")
        self.pages = pages
        self.prefix = PrefixIndex(secret, snapshots)
        # Kept pages that were freed because their place was needed, or because of their age.
        self.evictions = 0
        # A heap: the lowest numbers are used first, so that the memory of high ones can be given
        # back after a burst.
        self._free = list(range(pages))
        # Number of sequences that hold a page.
        self._holders: dict[int, int] = {}
        # Kept pages, the one unused for longest first, each with the period of its last use.
        self._kept: OrderedDict[int, int] = OrderedDict()
        self._period = 0
        # One more than the highest page held or kept since `restart_mark`.
        self._mark = 0

    @property
    def free(self) -> int:
        """Pages without a holder and without content of use."""
        return len(self._free)

    @property
    def kept(self) -> int:
        """Pages without a holder that are kept for their prefix."""
        return len(self._kept)

    @property
    def available(self) -> int:
        """Pages that can be allocated: free and kept ones."""
        return len(self._free) + len(self._kept)

    def held(self, page: int) -> bool:
        """True if a sequence holds the page."""
        return page in self._holders

    def allocate(self, count: int) -> tuple[int, ...]:
        """Allocates `count` pages to one holder, or none and raises OutOfPages."""
        if count < 0:
            raise ValueError(f"cannot allocate {count} pages")
        if count > self.available:
            raise OutOfPages(f"{count} pages requested, {self.available} of {self.pages} available")
        while len(self._free) < count:
            self._evict()
        taken = tuple(heappop(self._free) for _ in range(count))
        for page in taken:
            self._holders[page] = 1
        if taken:
            self._mark = max(self._mark, taken[-1] + 1)
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """Adds a holder to pages that are held or kept; ValueError for another page."""
        for page in pages:
            if self._kept.pop(page, None) is None and page not in self._holders:
                raise ValueError(f"page {page} is free: it has no content to hold")
            self._holders[page] = self._holders.get(page, 0) + 1
            self._mark = max(self._mark, page + 1)

    def release(self, pages: tuple[int, ...]) -> None:
        """Takes one holder from each of `pages`; ValueError if one has none.

        The last ones first: a prefix is of use without the pages after it, not the other way round.
        """
        for page in reversed(pages):
            holders = self._holders.get(page)
            if holders is None:
                raise ValueError(f"page {page} was released, but no sequence holds it")
            if holders > 1:
                self._holders[page] = holders - 1
                continue
            del self._holders[page]
            if page in self.prefix:
                self._kept[page] = self._period
            else:
                heappush(self._free, page)

    def forget(self, pages: Iterable[int]) -> None:
        """Makes the content of pages unfindable; held ones stay with their holders."""
        for page in pages:
            self.prefix.forget(page)
            if self._kept.pop(page, None) is not None:
                heappush(self._free, page)

    def forget_all(self) -> None:
        """Forgets every prefix: the content of all pages is lost."""
        self.forget(list(self.prefix))

    def next_period(self, most: int) -> None:
        """Begins a period of time; forgets kept pages that were unused for over `most` of them."""
        self._period += 1
        while self._kept and next(iter(self._kept.values())) < self._period - most:
            self._evict()

    def restart_mark(self) -> int:
        """One more than the highest page held or kept since the last call; 0 if none was."""
        mark = self._mark
        self._mark = max(max(self._holders, default=-1), max(self._kept, default=-1)) + 1
        return mark

    @property
    def used(self) -> bool:
        """True if a page was held or kept since `restart_mark`."""
        return self._mark > 0

    def check(self, held: Mapping[int, tuple[int, ...]]) -> None:
        """Compares the pool with the pages that the sequences hold: {sequence: pages}.

        Raises RuntimeError naming the difference; called when idle and by tests.
        """
        for seq_id, pages in held.items():
            if len(set(pages)) != len(pages):
                raise RuntimeError(f"sequence {seq_id} holds a page twice: {pages}")
        claimed = Counter(page for pages in held.values() for page in pages)
        if dict(claimed) != self._holders:
            differing = sorted(set(claimed.items()) ^ set(self._holders.items()))
            raise RuntimeError(f"holders of pages differ between sequences and pool: {differing}")
        together = sorted([*self._free, *self._holders, *self._kept])
        if together != list(range(self.pages)):
            raise RuntimeError(
                f"{len(self._free)} free, {len(self._holders)} held and {len(self._kept)} kept "
                f"pages are not the {self.pages} pages of the pool"
            )
        self.prefix.check()
        lost = [p for p in self.prefix if p not in self._holders and p not in self._kept]
        odd = [page for page in self._kept if page not in self.prefix]
        if lost or odd:
            raise RuntimeError(f"pages {lost} are found but free, pages {odd} kept but not found")

    def _evict(self) -> None:
        """Frees the kept page that was unused for longest."""
        page, _ = self._kept.popitem(last=False)
        self.prefix.forget(page)
        heappush(self._free, page)
        self.evictions += 1
