"""Pages and snapshots on their way between the KV cache and the nodes' disks. Pure bookkeeping.

A full page that was entered in the prefix index is stored soon after; the last snapshot of an
answer when that ends. A sequence whose next page is only on disk waits while it is fetched, in a
page of the pool that this module holds. Once there, the page is entered in the index and kept like
one that was computed, and the sequence takes it over. What does not come is computed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from hearth.root.scheduling.pages import PagePool

# Pages fetched at once, and the holder that the pool's check names for them.
MOST_FETCHES = 32
HOLDER = -1


@dataclass(frozen=True, slots=True)
class Move:
    """A page, or a snapshot of recurrent state, to copy to or from the disk."""

    # Stands for all tokens up to the end of the page (PrefixIndex.name).
    name: bytes
    # Its key in the index, the key before it, and its tokens.
    key: bytes
    before: bytes
    tokens: tuple[int, ...]
    # The page's number, or the snapshot's and the number of tokens that its state has seen.
    page: int | None = None
    snapshot: int | None = None
    position: int = 0


class Disk(Protocol):
    """The pages on the nodes' disks, as far as the root knows."""

    @property
    def secret(self) -> bytes:
        """Of the index's digests: the same after a restart."""

    def has(self, name: bytes, snapshot: bool) -> bool:
        """True if a page or a snapshot of this name is probably there."""

    def drop(self, name: bytes) -> None:
        """Forgets page and snapshot of this name."""


class DiskMoves:
    """Moves that are to be made, of one pool."""

    def __init__(self, disk: Disk | None, pool: PagePool) -> None:
        """disk: None where nothing is kept there."""
        self.disk = disk
        self._pool = pool
        # By name, oldest first.
        self._stores: dict[tuple[bytes, bool], Move] = {}
        self._fetches: dict[tuple[bytes, bool], Move] = {}

    @property
    def held(self) -> Mapping[int, tuple[int, ...]]:
        """Pages held for fetches, for the pool's check."""
        pages = tuple(move.page for move in self._fetches.values() if move.page is not None)
        return {HOLDER: pages} if pages else {}

    @property
    def taken(self) -> int:
        """Snapshots taken for fetches, for their check."""
        return sum(move.snapshot is not None for move in self._fetches.values())

    def can_fetch(self, name: bytes, snapshot: bool = False) -> bool:
        """True if it is on its way, or probably on disk."""
        return (name, snapshot) in self._fetches or self._has(name, snapshot)

    def fetch(self, move: Move, snapshot: bool = False) -> bool:
        """Begins to fetch, unless it is on its way; False if there is no room now."""
        if (move.name, snapshot) in self._fetches:
            return True
        if len(self._fetches) >= MOST_FETCHES:
            return False
        if snapshot:
            number = self._pool.prefix.snapshots.take()
            if number is None:
                return False
            move = replace(move, snapshot=number)
        else:
            if not self._pool.available:
                return False
            move = replace(move, page=self._pool.allocate(1)[0])
        self._fetches[move.name, snapshot] = move
        return True

    @property
    def fetching_pages(self) -> bool:
        """True while pages are on their way."""
        return any(move.page is not None for move in self._fetches.values())

    def fetches(self) -> list[Move]:
        """The moves to fetch, in order."""
        return list(self._fetches.values())

    def fetched(self, move: Move, ready: bool) -> None:
        """A fetch ended; ready: on every node the content is there."""
        snapshot = move.snapshot is not None
        if self._fetches.pop((move.name, snapshot), None) is not move:
            return
        prefix = self._pool.prefix
        if not ready:
            self.distrust([move.name])
            # It may have been computed meanwhile.
            number = prefix.find(move.key, move.before, move.tokens)
            if number is not None:
                self.offer(replace(move, page=number, snapshot=None))
        if move.snapshot is not None:
            if ready and prefix.has(move.key):
                prefix.snapshots.keep(move.snapshot, move.key)
            else:
                prefix.snapshots.give_back(move.snapshot)
        elif move.page is not None:
            if ready:
                prefix.add(move.page, move.key, move.before, move.tokens)
            self._pool.release((move.page,))

    def offer(self, move: Move) -> None:
        """A page or a snapshot that was computed, to be stored if it is not."""
        snapshot = move.snapshot is not None
        if self.disk is not None and not self._has(move.name, snapshot):
            self._stores[move.name, snapshot] = move
            if len(self._stores) > self._pool.pages:
                del self._stores[next(iter(self._stores))]

    def stores(self, most: int) -> list[Move]:
        """Up to `most` moves to make now; those whose content is lost are dropped."""
        moves: list[Move] = []
        while self._stores and len(moves) < most:
            move = self._stores.pop(next(iter(self._stores)))
            if self._current(move):
                moves.append(move)
        return moves

    @property
    def busy(self) -> bool:
        """True if anything is to be stored or fetched."""
        return bool(self._stores or self._fetches)

    @property
    def storing(self) -> bool:
        """True if something is to be stored."""
        return bool(self._stores)

    def distrust(self, names: Iterable[bytes]) -> None:
        """Forgets the files of these names: they may be damaged."""
        if self.disk is not None:
            for name in names:
                self.disk.drop(name)

    def clear(self) -> None:
        """The content of all pages is lost; fetches are given up."""
        self._stores.clear()
        self.give_up()

    def give_up(self) -> None:
        """Gives all fetches up."""
        for move in self.fetches():
            del self._fetches[move.name, move.snapshot is not None]
            if move.page is not None:
                self._pool.release((move.page,))
            if move.snapshot is not None:
                self._pool.prefix.snapshots.give_back(move.snapshot)

    def _has(self, name: bytes, snapshot: bool) -> bool:
        return self.disk is not None and self.disk.has(name, snapshot)

    def _current(self, move: Move) -> bool:
        prefix = self._pool.prefix
        if move.snapshot is not None:
            return prefix.snapshots.of(move.key) == move.snapshot
        return prefix.find(move.key, move.before, move.tokens) == move.page
