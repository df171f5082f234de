"""Pages shared between sequences: which are found, which are awaited, which are offered.

A sequence at a page's border takes over the pages that hold its next tokens. If an older sequence
is about to compute such a page, it waits for that: several answers to one prompt, submitted
together, prefill it once. Only full pages are shared, so none is written again. The last known
token is always computed, because its row gives the logits.
"""

from collections.abc import Iterable

from hearth.root.scheduling.batch import Limits
from hearth.root.scheduling.pages import PagePool
from hearth.root.scheduling.prefix import new_secret
from hearth.root.scheduling.sequence import Sequence


class Sharing:
    """The prefix cache as the scheduler uses it, and the pool of pages."""

    def __init__(self, limits: Limits) -> None:
        self._secret = new_secret()
        # By key: the sequence that computes a page with this key now.
        self._claims: dict[bytes, Sequence] = {}
        # Prompt tokens that were searched, and those found before anything was computed for them.
        self.lookup_tokens = 0
        self.hit_tokens = 0
        # Of pools before `pool`.
        self._evictions = 0
        self.pool = self._new_pool(limits)
        self._set(limits)

    def reset(self, limits: Limits) -> None:
        """Begins with an empty pool of the limits' size; no sequence may hold pages."""
        self._claims.clear()
        self._evictions += self.pool.evictions
        self.pool = self._new_pool(limits)
        self._set(limits)

    def _new_pool(self, limits: Limits) -> PagePool:
        return PagePool(limits.max_pages, self._secret, limits.snapshots)

    def _set(self, limits: Limits) -> None:
        self._page_size = limits.page_size
        # Pages do not hold a state that cannot go back: such prefixes need snapshots.
        self._stateful = not limits.drafts
        self._enabled = limits.prefix_cache and (not self._stateful or limits.snapshots > 0)

    @property
    def evictions(self) -> int:
        """Pages whose prefix was dropped because of their age or because their place was needed."""
        return self._evictions + self.pool.evictions

    def begin(self, sequence: Sequence) -> None:
        """Gives a new sequence, or one under new limits, the key that its prefix starts with."""
        sequence.keys.clear()
        if self._enabled and sequence.request.prefix_cache:
            sequence.keys.append(self.pool.prefix.start(sequence.request.salt))

    def found(self, sequence: Sequence) -> list[int]:
        """Pages that hold the sequence's next tokens; empty while rows of it are in flight.

        With a state that cannot go back: at its beginning only, up to a snapshot.
        """
        pages: list[int] = []
        if sequence.in_flight or sequence.scheduled % self._page_size:
            return pages
        if self._stateful and sequence.scheduled:
            return pages
        for number in range(sequence.scheduled // self._page_size, self._most(sequence)):
            before, key = self._keys(sequence, number)
            page = self.pool.prefix.find(key, before, self._tokens(sequence, number))
            if page is None:
                break
            pages.append(page)
        if self._stateful:
            snapshots = self.pool.prefix.snapshots
            while pages and sequence.keys[len(pages)] not in snapshots:
                pages.pop()
        return pages

    def adopt(self, sequence: Sequence, pages: list[int]) -> None:
        """Lets the sequence hold pages that `found` returned, and go on after them."""
        if not pages:
            return
        self.pool.hold(pages)
        before = sequence.cached
        sequence.adopt(pages, self._page_size)
        if self._stateful:
            sequence.restore = self.pool.prefix.snapshots.pin(sequence.keys[len(pages)])
        self.hit_tokens += sequence.cached - before

    def awaiting(self, running: Iterable[Sequence]) -> set[int]:
        """Ids of the sequences whose next page an older one computes already.

        running: oldest first. The others get a claim to their next page. A sequence never waits for
        a newer one, which may itself need a page of the older.
        """
        if self._stateful:
            return self._awaiting_snapshots(list(running))
        waiting: set[int] = set()
        for sequence in running:
            number = sequence.scheduled // self._page_size
            if not sequence.keys or number >= len(sequence.tokens) // self._page_size:
                continue
            _, key = self._keys(sequence, number)
            owner = self._claims.get(key)
            at_border = not sequence.in_flight and not sequence.scheduled % self._page_size
            older = owner is not None and owner.arrival < sequence.arrival
            if older and at_border and number < self._most(sequence):
                waiting.add(sequence.seq_id)
            elif not older:
                self._claims[key] = sequence
        return waiting

    def cut(self, sequence: Sequence, rows: int) -> int:
        """The number of the next `rows` rows up to a snapshot: a step has to end there."""
        left = self._border(sequence) * self._page_size - sequence.scheduled
        return min(rows, left) if left > 0 else rows

    def begin_step(self, sequence: Sequence, rows: int) -> None:
        """Chooses the snapshot to take after the next `rows` rows of the sequence, if any."""
        border = self._border(sequence)
        if not border or sequence.scheduled + rows != border * self._page_size:
            return
        snapshots = self.pool.prefix.snapshots
        if self._keys(sequence, border - 1)[1] not in snapshots:
            number = snapshots.take()
            if number is not None:
                sequence.save = (number, border * self._page_size)

    def begun(self, sequence: Sequence) -> None:
        """A step of the sequence was made: nodes begin from its snapshot before any later step."""
        if sequence.restore is not None:
            self.pool.prefix.snapshots.unpin(sequence.restore)
            sequence.restore = None

    def offer(self, sequence: Sequence) -> None:
        """Enters the pages of the sequence that are full and computed."""
        if not sequence.keys:
            return
        # After rejected drafts, and drafts behind the end, rows are of no use.
        full = min(sequence.computed, len(sequence.tokens)) // self._page_size
        for number in range(sequence.indexed, full):
            before, key = self._keys(sequence, number)
            tokens = self._tokens(sequence, number)
            self.pool.prefix.add(sequence.pages[number], key, before, tokens)
            self._claims.pop(key, None)
        sequence.indexed = max(sequence.indexed, full)
        if sequence.save is not None and sequence.save[1] == sequence.computed:
            key = sequence.keys[sequence.computed // self._page_size]
            if self.pool.prefix.has(key):
                self.pool.prefix.snapshots.keep(sequence.save[0], key)
                sequence.save = None
            else:
                self._drop_save(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Drops the claims of a sequence that ends, or is queued again."""
        sequence.indexed = 0
        self.begun(sequence)
        self._drop_save(sequence)
        for key in [key for key, owner in self._claims.items() if owner is sequence]:
            del self._claims[key]

    def _drop_save(self, sequence: Sequence) -> None:
        # A step in flight may still take it: before any later one in its place.
        if sequence.save is not None:
            self.pool.prefix.snapshots.give_back(sequence.save[0])
            sequence.save = None

    def _awaiting_snapshots(self, running: list[Sequence]) -> set[int]:
        """Ids of the sequences that begin where an older one will take a snapshot."""
        waiting: set[int] = set()
        for place, sequence in enumerate(running):
            if sequence.scheduled or not sequence.keys:
                continue
            for older in running[:place]:
                number = self._border(older)
                if 0 < number <= self._most(sequence) and (
                    self._keys(older, number - 1)[1] == self._keys(sequence, number - 1)[1]
                ):
                    waiting.add(sequence.seq_id)
        return waiting

    def _border(self, sequence: Sequence) -> int:
        """Full pages after which a snapshot of the sequence is still to be taken; 0 for none."""
        most = self._most(sequence) if self._stateful else 0
        return most if sequence.computed < most * self._page_size else 0

    def _most(self, sequence: Sequence) -> int:
        """Number of pages that the sequence may take over: those before its last known token."""
        return (len(sequence.tokens) - 1) // self._page_size if sequence.keys else 0

    def _tokens(self, sequence: Sequence, number: int) -> list[int]:
        begin = number * self._page_size
        return sequence.tokens[begin : begin + self._page_size]

    def _keys(self, sequence: Sequence, number: int) -> tuple[bytes, bytes]:
        """The keys before and after full page `number` of the sequence."""
        keys = sequence.keys
        for full in range(len(keys) - 1, number + 1):
            keys.append(self.pool.prefix.key(keys[-1], self._tokens(sequence, full)))
        return keys[number], keys[number + 1]
