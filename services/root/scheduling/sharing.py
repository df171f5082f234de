"""Pages shared between sequences: which are found, which are awaited, which are offered.

A sequence at a page's border takes over the pages that hold its next tokens. If an older sequence
is about to compute such a page, it waits for that: several answers to one prompt, submitted
together, prefill it once. If the page is only on disk, the sequence waits until it is fetched (see
disk.py). Only full pages are shared, so none is written again. The last known
token is always computed, because its row gives the logits.
"""

from collections.abc import Iterable

from hearth.root.scheduling.batch import Limits
from hearth.root.scheduling.disk import Disk, DiskMoves, Move
from hearth.root.scheduling.pages import PagePool
from hearth.root.scheduling.prefix import new_secret
from hearth.root.scheduling.sequence import Sequence


class Sharing:
    """The prefix cache as the scheduler uses it, and the pool of pages."""

    def __init__(self, limits: Limits, disk: Disk | None = None) -> None:
        self._secret = new_secret() if disk is None else disk.secret
        # By key: the sequence that computes a page with this key now.
        self._claims: dict[bytes, Sequence] = {}
        # Prompt tokens that were searched, and those found before anything was computed for them.
        self.lookup_tokens = 0
        self.hit_tokens = 0
        # Of pools before `pool`.
        self._evictions = 0
        self.pool = self._new_pool(limits)
        self.moves = DiskMoves(disk, self.pool)
        self._set(limits)

    def reset(self, limits: Limits) -> None:
        """Begins with an empty pool of the limits' size; no sequence may hold pages."""
        self._claims.clear()
        self._evictions += self.pool.evictions
        self.pool = self._new_pool(limits)
        self.moves = DiskMoves(self.moves.disk, self.pool)
        self._set(limits)

    def rewind(self) -> None:
        """No node fetches pages any more; what pages hold stays, and is still to be stored."""
        self.moves.give_up()

    def forget_all(self) -> None:
        """The content of all pages is lost."""
        self.moves.clear()
        self.pool.forget_all()

    def _new_pool(self, limits: Limits) -> PagePool:
        return PagePool(limits.max_pages, self._secret, limits.snapshots)

    def _set(self, limits: Limits) -> None:
        self._page_size = limits.page_size
        # Pages do not hold a sequence's state: such prefixes need snapshots.
        self._stateful = limits.stateful
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

        With a state beside the pages: at its beginning only, up to a snapshot.
        """
        pages: list[int] = []
        if sequence.in_flight or sequence.scheduled % self._page_size:
            return pages
        most = self._most(sequence)
        if self._stateful:
            most = 0 if sequence.scheduled else self._snapshot_border(sequence, most)
        for number in range(sequence.scheduled // self._page_size, most):
            before, key = self._keys(sequence, number)
            page = self.pool.prefix.find(key, before, self._tokens(sequence, number))
            if page is None:
                break
            pages.append(page)
        return pages if not self._stateful or len(pages) == most else []

    def _snapshot_border(self, sequence: Sequence, most: int) -> int:
        """The most full pages, up to `most`, that end at a snapshot and are all there; else 0."""
        if not most:
            return 0
        self._keys(sequence, most - 1)
        prefix, keys = self.pool.prefix, sequence.keys
        for border in range(most, 0, -1):
            # Few have one: only there it is worth looking at the pages.
            if keys[border] in prefix.snapshots and all(map(prefix.has, keys[1 : border + 1])):
                return border
        return 0

    def fetching(self, running: Iterable[Sequence]) -> set[int]:
        """Ids of the sequences whose next pages come from disk; begins to fetch these."""
        waiting: set[int] = set()
        if self.moves.disk is None:
            return waiting
        for sequence in running:
            if sequence.in_flight or not sequence.keys or sequence.scheduled % self._page_size:
                continue
            if self._fetch_state(sequence) if self._stateful else self._fetch_pages(sequence):
                waiting.add(sequence.seq_id)
        return waiting

    def _fetch_pages(self, sequence: Sequence) -> bool:
        """True if the sequence's next page is on disk; fetches it, and those after it."""
        waiting = False
        for number in range(sequence.scheduled // self._page_size, self._most(sequence)):
            if self.pool.prefix.has(self._keys(sequence, number)[1]):
                continue
            move = self._move(sequence, number)
            if not self.moves.can_fetch(move.name):
                break
            waiting = True
            if not self.moves.fetch(move):
                break
        return waiting

    def _fetch_state(self, sequence: Sequence) -> bool:
        """True if the sequence can begin from a snapshot on disk; fetches its pages, then it."""
        if sequence.scheduled:
            return False
        if sequence.on_disk is None:
            sequence.on_disk = self._disk_border(sequence)
        for number in range(sequence.on_disk):
            if self.pool.prefix.has(self._keys(sequence, number)[1]):
                continue
            move = self._move(sequence, number)
            if not self.moves.can_fetch(move.name):
                sequence.on_disk = 0
                return False
            if not self.moves.fetch(move):
                return True
        if not sequence.on_disk or self.moves.fetching_pages:
            return sequence.on_disk > 0
        move = self._move(sequence, sequence.on_disk - 1)
        # Not twice: one that came and was replaced at once would come for ever.
        began = self.moves.can_fetch(move.name, True) and self.moves.fetch(move, True)
        if not began or move.key in self.pool.prefix.snapshots:
            sequence.on_disk = 0
        return began

    def _disk_border(self, sequence: Sequence) -> int:
        """The most full pages up to a snapshot on disk that are all there or in memory; else 0."""
        prefix, moves = self.pool.prefix, self.moves
        made = [self._move(sequence, number) for number in range(self._most(sequence))]
        there = 0
        while there < len(made) and (
            prefix.has(made[there].key) or moves.can_fetch(made[there].name)
        ):
            there += 1
        borders = range(there, 0, -1)
        return next((b for b in borders if moves.can_fetch(made[b - 1].name, True)), 0)

    def _move(self, sequence: Sequence, number: int, snapshot: int | None = None) -> Move:
        before, key = self._keys(sequence, number)
        tokens = self._tokens(sequence, number)
        name = self.pool.prefix.name(before, tokens)
        page = sequence.pages[number] if number < len(sequence.pages) else None
        return Move(
            name,
            key,
            before,
            tuple(tokens),
            page if snapshot is None else None,
            snapshot,
            (number + 1) * self._page_size,
        )

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
        if not self._stateful or not sequence.keys or sequence.save:
            return
        known, after = len(sequence.tokens), sequence.scheduled + rows
        border = after // self._page_size
        position = border * self._page_size
        # Behind the prompt the end is not known before it comes: at every page's border. Drafts may
        # go beyond it: from their step's state nodes can go back.
        answer = after >= known and position >= known
        if position != after and not answer:
            return
        snapshots = self.pool.prefix.snapshots
        if not answer and border != self._border(sequence):
            return
        if position <= known and self._keys(sequence, border - 1)[1] in snapshots:
            return
        if answer and sequence.answered is not None:
            snapshots.drop(sequence.answered)
            sequence.answered = None
        number = snapshots.take()
        if number is not None:
            sequence.save = (number, position)

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
            if self.pool.prefix.add(sequence.pages[number], key, before, tokens):
                self.moves.offer(self._move(sequence, number))
            self._claims.pop(key, None)
        sequence.indexed = max(sequence.indexed, full)
        if sequence.save is None:
            return
        number, position = sequence.save
        border = position // self._page_size
        if border > full:
            if not sequence.in_flight:  # drafts before it were rejected
                self._drop_save(sequence)
        elif not self.pool.prefix.has(key := sequence.keys[border]):
            self._drop_save(sequence)
        else:
            self.pool.prefix.snapshots.keep(number, key)
            sequence.save = None
            if position >= len(sequence.request.prompt):
                sequence.answered = key
            else:
                self._offer_snapshot(sequence, border)

    def leave(self, sequence: Sequence) -> None:
        """Drops the claims of a sequence that ends, or is queued again."""
        if sequence.answered is not None:
            self._offer_snapshot(sequence, sequence.keys.index(sequence.answered))
            sequence.answered = None
        sequence.indexed = 0
        sequence.on_disk = None
        self.begun(sequence)
        self._drop_save(sequence)
        for key in [key for key, owner in self._claims.items() if owner is sequence]:
            del self._claims[key]

    def distrust(self, sequence: Sequence) -> None:
        """Lets no later sequence find what a sequence computed or took over."""
        self.pool.forget(sequence.pages)
        # Its state may be the snapshot of a prefix whose pages another sequence computed.
        for key in sequence.keys:
            self.pool.prefix.snapshots.drop(key)
        if sequence.keys:
            full = range(len(sequence.tokens) // self._page_size)
            self.moves.distrust(self._move(sequence, number).name for number in full)

    def _offer_snapshot(self, sequence: Sequence, border: int) -> None:
        """Lets the snapshot behind so many full pages be stored, if it is still there."""
        number = self.pool.prefix.snapshots.of(sequence.keys[border])
        if number is not None:
            self.moves.offer(self._move(sequence, border - 1, number))

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
