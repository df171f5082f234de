"""Continuous batching as pure state: the sequences of the next step, and their pages.

Events come in (`submit`, `cancel`, `propose`, `step_finished`, `step_failed`, `rewind`, `refit`),
batches come out (`schedule`). There is no I/O, clock or thread here; the engine has those. Several
batches may be in flight; they finish in the order in which they were scheduled.

A sequence counts its positions `scheduled` (assigned to batches) and `computed` (done). One rule
covers prefill, decode and drafts: both counts catch up with the known tokens and the drafts. So
prefill chunks of one sequence may be in several batches at once. A decode row is in only one,
because the next token depends on it.

The rules, in order:

1. Sequences run in order of arrival: every running sequence is older than every waiting one.
2. A step takes decode tokens first: one for each sequence with only its last position left. The
   rest of `max_step_tokens` goes to prefill chunks, evenly over the sequences in prefill. A long
   prompt therefore never delays decoding, nor a short prompt behind it. Draft tokens get the rows
   and pages that remain, because they are only a guess. With several batches in flight each takes
   its part of the decoding sequences, and prompts are cut into a chunk for each: otherwise stages
   would wait for each other.
3. Pages are allocated when a step needs them. A waiting sequence starts when there are pages for
   its known tokens, and for those that running sequences still have to compute. Pages of the same
   tokens are shared (sharing.py); those that no sequence holds are kept until they are needed.
4. If there is no page for an older sequence, the newest running one is preempted: its pages
   are freed, and it returns to the front of the queue with prompt and generated tokens, which are
   prefilled again. The newest sequence itself just waits for a page. So the oldest sequence always
   advances. Every sequence ends, because none is accepted that would not fit alone.
5. Pages are freed only when no batch in flight uses them. A sequence in flight is never preempted:
   the older one waits until that batch is done. A sequence cancelled in flight keeps its pages
   until then.
"""

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from hearth.common.errors import HearthError, Reason
from hearth.root.scheduling import admission, invariants
from hearth.root.scheduling.batch import (
    Batch,
    FinishReason,
    Limits,
    Request,
    Sampled,
    SequenceStep,
)
from hearth.root.scheduling.disk import Disk
from hearth.root.scheduling.pages import PagePool
from hearth.root.scheduling.sequence import Sequence
from hearth.root.scheduling.sharing import Sharing

# Prompts are not cut to fewer rows than these for the sake of several batches: every step reads all
# weights of a stage.
_LEAST_CHUNK = 32


@dataclass(slots=True)
class Scheduler:
    """See the module's docstring. Not thread-safe: it belongs to the engine's thread."""

    limits: Limits
    # Where pages are kept beside the memory.
    disk: Disk | None = None
    preemptions: int = 0
    sharing: Sharing = field(init=False)
    # By arrival, oldest first.
    _running: list[Sequence] = field(default_factory=list)
    _waiting: deque[Sequence] = field(default_factory=deque)
    _by_id: dict[int, Sequence] = field(default_factory=dict)
    # Ended while in flight, in that order: batches still write to their pages.
    _zombies: dict[int, Sequence] = field(default_factory=dict)
    # In the order in which they were scheduled.
    _flights: deque[Batch] = field(default_factory=deque)
    _arrivals: int = 0
    # Changes of page tables for the next batch.
    _ended: list[int] = field(default_factory=list)
    _reset: bool = True

    def __post_init__(self) -> None:
        self.sharing = Sharing(self.limits, self.disk)

    @property
    def pool(self) -> PagePool:
        """The pages."""
        return self.sharing.pool

    @property
    def running(self) -> int:
        """Sequences that hold pages, or may take some in the next step."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences queued behind the running ones."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Batches scheduled and not finished."""
        return len(self._flights)

    @property
    def idle(self) -> bool:
        """True if no sequence is known and no batch is in flight."""
        return not self._by_id and not self._flights

    def submit(self, request: Request) -> None:
        """Queues a request. Raises HearthError if it can never fit, or if the queue is full."""
        if request.seq_id in self._by_id or request.seq_id in self._zombies:
            raise ValueError(f"sequence {request.seq_id} is already known")
        limit, reason = self.admit(request)
        sequence = Sequence(request, self._arrivals, list(request.prompt), limit, reason)
        self._arrivals += 1
        self.sharing.begin(sequence)
        self.sharing.lookup_tokens += len(request.prompt) if sequence.keys else 0
        self._waiting.append(sequence)
        self._by_id[request.seq_id] = sequence

    def admit(self, request: Request, known: int | None = None) -> tuple[int, FinishReason]:
        """The request's limit of tokens, and the reason for which it ends there.

        known: sequences, with those that are on their way to `submit`. Raises HearthError as
        `submit` does. Changes nothing, so that any thread may ask.
        """
        limit, reason = admission.limit(request, self.limits)
        lim = self.limits
        if (len(self._by_id) if known is None else known) >= lim.max_running + lim.max_waiting:
            raise HearthError(
                Reason.QUEUE_FULL,
                f"{len(self._running)} requests run and {len(self._waiting)} wait, the limits are "
                f"{lim.max_running} and {lim.max_waiting}; try again later",
                {"running": len(self._running), "waiting": len(self._waiting)},
            )
        return limit, reason

    def cancel(self, seq_id: int, *, distrust: bool = False) -> bool:
        """Forgets a sequence; False if it is not known, or no longer.

        Its pages are freed now, or when no batch in flight uses them any more. With `distrust` no
        later sequence finds them: what they hold may be damaged.
        """
        sequence = self._by_id.get(seq_id)
        if sequence is None:
            return False
        if distrust:
            self.sharing.distrust(sequence)
        self._end(sequence)
        return True

    def propose(self, seq_id: int, tokens: Tokens[int]) -> bool:
        """Sets the draft tokens to verify in the sequence's next decode step.

        They replace earlier ones, and are dropped when the sequence gets a token. Fewer or none
        are used if rows, pages, the limit on drafts or the sequence's own leave no room. False
        if the sequence is not known.
        """
        sequence = self._by_id.get(seq_id)
        if sequence is None:
            return False
        sequence.drafts = tuple(tokens[: self.limits.most_drafts])
        return True

    def knows(self, seq_id: int) -> bool:
        """True for a sequence that has not ended."""
        return seq_id in self._by_id

    def decoding(self) -> list[Sequence]:
        """The running sequences that have a decode row in the next step, for `propose`."""
        decoding = [sequence for sequence in self._running if sequence.pending == 1]
        return decoding[: self._most_decoding()]

    def schedule(self) -> Batch | None:
        """The next step; None if nothing can be scheduled before a batch in flight is done."""
        self._admit()
        for sequence in self._running:
            self.sharing.adopt(sequence, self.sharing.found(sequence))
        fetching = self.sharing.fetching(self._running)
        computing = [s for s in self._running if s.seq_id not in fetching]
        awaiting = fetching | self.sharing.awaiting(computing)
        # Rows of each sequence in this step; preemption removes entries again.
        rows: dict[int, int] = {}
        budget = self.limits.max_step_tokens
        most = self._most_decoding()
        for sequence in self._running.copy():
            if len(rows) < most and sequence.pending == 1 and self._make_room(sequence, 1, rows):
                rows[sequence.seq_id] = 1
        decoding = set(rows)
        for sequence in self._running:
            if following := sequence.following:
                sequence.drafts = following[: self.limits.most_drafts]
        budget = min(budget - len(rows), self._chunk(awaiting))
        for sequence, share in self._share(budget, awaiting):
            if granted := self._make_room(sequence, self.sharing.cut(sequence, share), rows):
                rows[sequence.seq_id] = granted
        if not rows:
            return None
        self._add_drafts(rows, decoding)
        batch = self._batch(rows, decoding)
        self._flights.append(batch)
        return batch

    def step_finished(self, batch: Batch, tokens: Mapping[int, Tokens[int]]) -> list[Sampled]:
        """Finishes the oldest batch in flight, and forgets the sequences that end.

        tokens: for each sequence with outputs its accepted drafts in order, then the token sampled
        after them: 1 to `SequenceStep.outputs` tokens. Tokens after the one that ends a sequence
        are dropped; those of sequences cancelled meanwhile are ignored. Raises RuntimeError if
        `batch` is not the oldest in flight, ValueError for tokens that do not fit it.
        """
        if not self._flights or self._flights[0] is not batch:
            raise RuntimeError(f"step_finished() was called out of order: {self._story(batch)}")
        accepted = {
            step.seq_id: step.accepted(tokens.get(step.seq_id, ()))
            for step in batch.sequences
            if step.outputs and step.seq_id in self._by_id
        }
        self._flights.popleft()
        for step in batch.sequences:
            sequence = self._known(step.seq_id)
            sequence.in_flight -= 1
            sequence.computed = step.position + len(step.tokens)
        # First the pages of sequences that ended earlier: pages are freed in order of release.
        self._bury()
        sampled: list[Sampled] = []
        for step in batch.sequences:
            if step.seq_id in accepted:
                sequence, new = self._by_id[step.seq_id], accepted[step.seq_id]
                # Rows after the last accepted draft will be computed again.
                sequence.computed -= step.outputs - len(new)
                sequence.scheduled = sequence.computed
                sequence.drafts = ()
                sampled += self._append(sequence, new)
            elif step.seq_id in self._by_id:
                self.sharing.offer(self._by_id[step.seq_id])
        return sampled

    def step_failed(self) -> list[int]:
        """Forgets every sequence: the batches in flight and the KV cache are lost.

        Returns the forgotten ids, running and waiting, oldest first.
        """
        self._drop_flights()
        ended = sorted(self._by_id.values(), key=lambda sequence: sequence.arrival)
        for sequence in ended:
            self._end(sequence)
        self._forget_tables()
        return [sequence.seq_id for sequence in ended]

    def rewind(self, *, keep: bool = False) -> list[int]:
        """Queues all sequences again in their order, to be prefilled: the KV cache is lost.

        keep: the nodes still have their pages, and no page tables. Then what was computed before is
        found again. Returns the ids that were in batches in flight, which gave no tokens.
        """
        steps = [step.seq_id for batch in self._flights for step in batch.sequences]
        self._drop_flights()
        for sequence in reversed(self._running.copy()):
            self._requeue(sequence)
        if keep:
            self._ended.clear()
            self._reset = False
            self.sharing.rewind()
        else:
            self._forget_tables()
        return [seq_id for seq_id in dict.fromkeys(steps) if seq_id in self._by_id]

    def refit(self, limits: Limits) -> list[tuple[int, HearthError]]:
        """Sets new limits and rewinds: the KV cache is empty.

        Sequences that no longer fit are forgotten and returned with the error.
        """
        self.rewind()
        self.limits = limits
        self.sharing.reset(limits)
        misfits: list[tuple[int, HearthError]] = []
        for sequence in list(self._waiting):
            self.sharing.begin(sequence)
            try:
                sequence.limit, sequence.limit_reason = admission.limit(sequence.request, limits)
                if len(sequence.tokens) >= sequence.limit:
                    raise admission.outgrown(len(sequence.tokens), limits)
            except HearthError as error:
                self._end(sequence)
                misfits.append((sequence.seq_id, error))
        return misfits

    def check(self) -> None:
        """Integrity check for idle times and tests; RuntimeError names the inconsistency."""
        invariants.check(
            self.limits,
            self.pool,
            self._running,
            self._waiting,
            self._by_id,
            self._zombies,
            self._flights,
            self.sharing.moves,
        )

    def take_reset(self) -> bool:
        """True if the nodes have to reset their page tables first; the caller then lets them."""
        reset, self._reset = self._reset, False
        return reset

    def _known(self, seq_id: int) -> Sequence:
        return self._by_id[seq_id] if seq_id in self._by_id else self._zombies[seq_id]

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self.limits.page_size)

    def _admit(self) -> None:
        """Moves waiting sequences to running, in order, while there is room (rule 3)."""
        if not self._waiting or len(self._running) >= self.limits.max_running:
            return
        # After rejected drafts a sequence may hold more pages than its tokens need so far.
        owed = sum(max(0, self._pages_for(len(s.tokens)) - len(s.pages)) for s in self._running)
        spare = self.pool.available - owed
        while self._waiting and len(self._running) < self.limits.max_running:
            sequence = self._waiting[0]
            found = self.sharing.found(sequence)
            shared = sum(self.pool.held(page) for page in found)
            needed = self._pages_for(len(sequence.tokens)) - shared
            if needed > spare:
                break
            spare -= needed
            self._running.append(self._waiting.popleft())
            self.sharing.adopt(sequence, found)

    def _most_decoding(self) -> int:
        """Sequences that may decode in this step: an equal part for each batch in flight."""
        decoding = sum(sequence.pending <= 1 for sequence in self._running)
        return -(-decoding // self.limits.batches)

    def _chunk(self, awaiting: set[int]) -> int:
        """Rows of prefill that this step may have, so that as many batches have some."""
        pending = sum(
            s.pending for s in self._running if s.pending > 1 and s.seq_id not in awaiting
        )
        return max(_LEAST_CHUNK, -(-pending // self.limits.batches))

    def _share(self, budget: int, awaiting: set[int]) -> list[tuple[Sequence, int]]:
        """Divides `budget` rows evenly over the sequences in prefill; the oldest get the rest.

        awaiting: sequences that get none, because others compute their pages.
        """
        prefilling = [s for s in self._running if s.pending > 1 and s.seq_id not in awaiting]
        shares: list[tuple[Sequence, int]] = []
        fair = max(1, budget // len(prefilling)) if prefilling else 0
        for sequence in prefilling:
            share = min(sequence.pending, fair, budget)
            budget -= share
            shares.append((sequence, share))
        for i, (sequence, share) in enumerate(shares):
            extra = min(sequence.pending - share, budget)
            budget -= extra
            shares[i] = (sequence, share + extra)
        return [(sequence, share) for sequence, share in shares if share]

    def _make_room(self, sequence: Sequence, wanted: int, rows: dict[int, int]) -> int:
        """Allocates pages for up to `wanted` more positions; returns how many there are.

        Preempts newer sequences for the first position (rule 4), and removes them from `rows`. 0
        if the sequence has itself been preempted, or must wait.
        """
        held = len(sequence.pages) * self.limits.page_size
        if sequence.scheduled + wanted <= held:
            return wanted
        if sequence not in self._running:
            return 0  # preempted by an older one in this step
        if sequence.scheduled == held:
            while not self.pool.available:
                victim = self._running[-1]
                if victim is sequence or victim.in_flight:
                    return 0
                self._preempt(victim)
                rows.pop(victim.seq_id, None)
        return self._allocate(sequence, wanted)

    def _allocate(self, sequence: Sequence, wanted: int) -> int:
        """Takes pages for up to `wanted` more positions; returns how many there are."""
        missing = self._pages_for(sequence.scheduled + wanted) - len(sequence.pages)
        count = min(max(0, missing), self.pool.available)
        sequence.pages += self.pool.allocate(count)
        return min(wanted, len(sequence.pages) * self.limits.page_size - sequence.scheduled)

    def _add_drafts(self, rows: dict[int, int], decoding: set[int]) -> None:
        """Adds draft rows to the decode rows from the rows that are left (rule 2)."""
        left = self.limits.max_step_tokens - sum(rows.values())
        for seq_id in [seq_id for seq_id in rows if seq_id in decoding]:
            sequence = self._by_id[seq_id]
            drafts = min(len(sequence.drafts), sequence.most_drafts, left)
            if drafts:
                rows[seq_id] = self._allocate(sequence, 1 + drafts)
                left -= rows[seq_id] - 1

    def _batch(self, rows: dict[int, int], decoding: set[int]) -> Batch:
        """Makes the batch of these rows and puts it in flight."""
        steps: list[SequenceStep] = []
        tokens: list[int] = []
        output_rows: list[int] = []
        decode_rows = 0
        for seq_id, count in rows.items():
            self.sharing.begin_step(self._by_id[seq_id], count)
            step = self._by_id[seq_id].advance(count, self.limits.page_size)
            self.sharing.begun(self._by_id[seq_id])
            steps.append(step)
            tokens += step.tokens
            output_rows += range(len(tokens) - step.outputs, len(tokens))
            decode_rows += count if seq_id in decoding else 0
        ended, self._ended = tuple(self._ended), []
        return Batch(
            tuple(steps),
            tuple(tokens),
            tuple(output_rows),
            decode_rows,
            ended,
            self.take_reset(),
        )

    def _append(self, sequence: Sequence, tokens: Tokens[int]) -> list[Sampled]:
        """Appends new tokens to a sequence, up to the one that ends it."""
        sampled: list[Sampled] = []
        for token in tokens:
            sequence.tokens.append(token)
            finish = sequence.finish(token)
            sampled.append(Sampled(sequence.seq_id, token, finish))
            if finish is not None:
                break
        self.sharing.offer(sequence)
        if sampled[-1].finish is not None:
            self._end(sequence)
        return sampled

    def _preempt(self, sequence: Sequence) -> None:
        if sequence.table:
            self._ended.append(sequence.seq_id)
        self._requeue(sequence)
        self.preemptions += 1

    def _requeue(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self.sharing.leave(sequence)
        self._release(sequence)
        sequence.scheduled = sequence.computed = 0
        # Newer than all running and older than all waiting ones: the front keeps the order.
        self._waiting.appendleft(sequence)

    def _end(self, sequence: Sequence) -> None:
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        del self._by_id[sequence.seq_id]
        self.sharing.leave(sequence)
        if sequence.table:
            self._ended.append(sequence.seq_id)
        if sequence.in_flight:
            self._zombies[sequence.seq_id] = sequence
        else:
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages = ()
        sequence.table = 0

    def _bury(self) -> None:
        """Frees the pages of ended sequences that no batch in flight uses any more."""
        for seq_id, sequence in list(self._zombies.items()):
            if not sequence.in_flight:
                self._release(sequence)
                del self._zombies[seq_id]

    def _drop_flights(self) -> None:
        """Drops the batches in flight: nothing uses their pages any more."""
        self._flights.clear()
        for sequence in [*self._running, *self._zombies.values()]:
            sequence.in_flight = 0
            sequence.scheduled = sequence.computed
        self._bury()

    def _forget_tables(self) -> None:
        """Makes the next batch reset all page tables on the nodes: no page holds anything."""
        self._ended.clear()
        self._reset = True
        self.sharing.forget_all()

    def _story(self, batch: Batch) -> str:
        """The batches in flight and the place of `batch` among them, for an error."""
        in_flight = [flight.brief() for flight in self._flights]
        place = next((i for i, flight in enumerate(self._flights) if flight is batch), None)
        given = f"batch {place + 1} of them" if place is not None else "a batch that is not"
        story = "no step in flight" if not in_flight else f"in flight are {', '.join(in_flight)}"
        return f"{story}; finished was {given}: {batch.brief()}"
