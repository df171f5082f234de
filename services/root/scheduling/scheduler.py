"""Which sequences run in the next step, on which pages: continuous batching, as pure state.

Events come in (`submit`, `cancel`, `step_finished`, `step_failed`, `rewind`, `refit`), batches come
out (`schedule`).
There is no I/O, no clock and no thread here; the engine around it has those. One step is in flight
at most.

The rules, in order:

1. Sequences are served in order of arrival: every running sequence is older than every waiting one.
2. A step takes decode tokens first (one for each sequence that lacks only its last position), then
   prefill chunks out of what is left of `max_step_tokens`, divided evenly among those in prefill. A
   long prompt therefore never holds up decoding, nor a short prompt behind it.
3. Pages are allocated when a step needs them. A waiting sequence is let in when the pages of its
   known tokens, and those that running sequences still need for theirs, are free.
4. When an older sequence finds no free page, the newest running one is preempted: its pages are
   freed, and it goes back to the front of the queue with prompt and generated tokens, which are
   prefilled again. The newest itself just waits for a page. So the oldest sequence always advances,
   and since none is accepted that would not fit alone, every sequence ends.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from hearth.common.errors import HearthError, Reason
from hearth.root.scheduling.batch import Batch, FinishReason, Limits, Request, Sampled, SequenceStep
from hearth.root.scheduling.pages import PagePool


@dataclass(slots=True, eq=False)
class _Sequence:
    request: Request
    arrival: int
    # Prompt and generated tokens; the KV of the first `computed` is in `pages`.
    tokens: list[int]
    # Tokens at which it ends, and with what reason.
    limit: int
    limit_reason: FinishReason
    computed: int = 0
    pages: tuple[int, ...] = ()

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed


@dataclass(slots=True)
class Scheduler:
    """See the module's docstring. Not thread-safe: it belongs to the engine's thread."""

    limits: Limits
    preemptions: int = 0
    pool: PagePool = field(init=False)
    # By arrival, oldest first.
    _running: list[_Sequence] = field(default_factory=list)
    _waiting: deque[_Sequence] = field(default_factory=deque)
    _by_id: dict[int, _Sequence] = field(default_factory=dict)
    _in_flight: Batch | None = None
    _arrivals: int = 0

    def __post_init__(self) -> None:
        self.pool = PagePool(self.limits.max_pages)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self._by_id

    def submit(self, request: Request) -> None:
        """Queues a request, or raises HearthError: it can never fit, or the queue is full."""
        if request.seq_id in self._by_id:
            raise ValueError(f"sequence {request.seq_id} is already known")
        limit, reason = self._limit(request)
        lim = self.limits
        if len(self._by_id) >= lim.max_running + lim.max_waiting:
            raise HearthError(
                Reason.QUEUE_FULL,
                f"{len(self._running)} requests run and {len(self._waiting)} wait, and the root "
                f"takes {lim.max_running} and {lim.max_waiting}; try again later",
                {"running": len(self._running), "waiting": len(self._waiting)},
            )
        sequence = _Sequence(request, self._arrivals, list(request.prompt), limit, reason)
        self._arrivals += 1
        self._waiting.append(sequence)
        self._by_id[request.seq_id] = sequence

    def cancel(self, seq_id: int) -> bool:
        """Forgets a sequence and frees its pages; False when it is not (or no longer) known.

        A step in flight may still write into the freed pages; they are given to no one before that
        step has ended, because `schedule` is not called before.
        """
        sequence = self._by_id.get(seq_id)
        if sequence is None:
            return False
        self._end(sequence)
        return True

    def schedule(self) -> Batch | None:
        """The next step, or None when there is nothing to do."""
        if self._in_flight is not None:
            raise RuntimeError("schedule() was called while a step is in flight")
        self._admit()
        if not self._running:
            return None
        # Rows for each sequence of this step; preemption takes entries out again.
        rows: dict[int, int] = {}
        budget = self.limits.max_step_tokens
        for sequence in self._running.copy():
            if sequence.pending == 1 and self._make_room(sequence, 1, rows):
                rows[sequence.request.seq_id] = 1
        decoding = set(rows)
        budget -= len(rows)
        for sequence, share in self._share(budget):
            if granted := self._make_room(sequence, share, rows):
                rows[sequence.request.seq_id] = granted
        batch = self._batch(rows, decoding)
        self._in_flight = batch
        return batch

    def step_finished(self, tokens: Mapping[int, int]) -> list[Sampled]:
        """The step in flight is done; `tokens` has one sampled token for each row of logits wanted.

        Tokens of sequences cancelled meanwhile are ignored. Sequences that end are forgotten.
        """
        batch = self._in_flight
        if batch is None:
            raise RuntimeError("step_finished() was called with no step in flight")
        self._in_flight = None
        sampled = []
        for step in batch.sequences:
            sequence = self._by_id.get(step.seq_id)
            if sequence is None:
                continue
            sequence.computed += len(step.tokens)
            if step.wants_logits:
                token = tokens[step.seq_id]
                sequence.tokens.append(token)
                finish = self._finish(sequence, token)
                if finish is not None:
                    self._end(sequence)
                sampled.append(Sampled(step.seq_id, token, finish))
        return sampled

    def step_failed(self) -> list[int]:
        """The step in flight is lost, and with it the KV cache: forgets every sequence.

        Returns the ids forgotten, running and waiting, oldest first.
        """
        self._in_flight = None
        ended = sorted(self._by_id.values(), key=lambda sequence: sequence.arrival)
        for sequence in ended:
            self._end(sequence)
        return [sequence.request.seq_id for sequence in ended]

    def rewind(self) -> list[int]:
        """The KV cache is gone, no sequence is: all are prefilled again, in the order they had.

        Returns the ids that were in the step in flight, if there was one: it gave no tokens.
        """
        batch, self._in_flight = self._in_flight, None
        for sequence in reversed(self._running.copy()):
            self._requeue(sequence)
        steps = batch.sequences if batch is not None else ()
        return [step.seq_id for step in steps if step.seq_id in self._by_id]

    def refit(self, limits: Limits) -> list[tuple[int, HearthError]]:
        """Other limits from now on, and an empty KV cache: rewinds.

        Sequences that fit no more are forgotten and returned, with the reason.
        """
        self.rewind()
        self.limits = limits
        self.pool = PagePool(limits.max_pages)
        misfits: list[tuple[int, HearthError]] = []
        for sequence in list(self._waiting):
            try:
                sequence.limit, sequence.limit_reason = self._limit(sequence.request)
                if len(sequence.tokens) >= sequence.limit:
                    raise self._outgrown(sequence)
            except HearthError as error:
                self._end(sequence)
                misfits.append((sequence.request.seq_id, error))
        return misfits

    def check(self) -> None:
        """Integrity check: RuntimeError says what does not agree. For idle times and tests."""
        self.pool.check({s.request.seq_id: s.pages for s in self._by_id.values()})
        order = [s.arrival for s in [*self._running, *self._waiting]]
        if order != sorted(set(order)):
            raise RuntimeError(f"sequences are out of order: {order}")
        if {id(s) for s in [*self._running, *self._waiting]} != set(map(id, self._by_id.values())):
            raise RuntimeError("a known sequence neither runs nor waits")
        if len(self._running) > self.limits.max_running:
            raise RuntimeError(f"{len(self._running)} sequences run of {self.limits.max_running}")
        for s in self._running:
            if s.pending < 1 or len(s.pages) < self._pages_for(s.computed):
                raise RuntimeError(
                    f"sequence {s.request.seq_id} has {len(s.tokens)} tokens, {s.computed} of them "
                    f"computed, and {len(s.pages)} pages"
                )
        for s in self._waiting:
            if s.pages or s.computed:
                raise RuntimeError(f"waiting sequence {s.request.seq_id} holds {s.pages}")

    def _limit(self, request: Request) -> tuple[int, FinishReason]:
        """At how many tokens the request ends, and why; HearthError when it cannot be served."""
        lim, prompt = self.limits, len(request.prompt)
        if prompt < 1:
            raise HearthError(
                Reason.INVALID_ARGUMENT,
                "the prompt has 0 tokens, and this model has no begin-of-sequence token to start "
                "from; give at least 1 token",
            )
        if prompt >= lim.context_size:
            raise HearthError(
                Reason.PROMPT_TOO_LONG,
                f"the prompt has {prompt} tokens and the context {lim.context_size} positions, for "
                "prompt and answer together; shorten the prompt to at most "
                f"{lim.context_size - 1} tokens, or start the root with a larger --context",
                {"promptTokens": prompt, "contextSize": lim.context_size},
            )
        wanted = prompt + request.max_tokens
        # The last token is sampled and never computed, so it needs no position in the cache.
        positions = min(wanted, lim.context_size) - 1 if request.max_tokens else prompt
        if positions > lim.max_pages * lim.page_size:
            raise HearthError(
                Reason.OUT_OF_MEMORY,
                f"{prompt} prompt tokens and {request.max_tokens} new ones need {positions} "
                f"positions of KV cache, and all of it has {lim.max_pages * lim.page_size} "
                f"({lim.max_pages} pages of {lim.page_size}); ask for fewer tokens, or give the "
                "root more pages",
                {"positions": positions, "maxPages": lim.max_pages, "pageSize": lim.page_size},
            )
        room = min(lim.context_size, lim.max_pages * lim.page_size + 1)
        if request.max_tokens and wanted <= room:
            return wanted, FinishReason.LENGTH
        return room, FinishReason.CONTEXT

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self.limits.page_size)

    def _admit(self) -> None:
        """Moves waiting sequences to running, in order, while there is room (rule 3)."""
        if not self._waiting or len(self._running) >= self.limits.max_running:
            return
        owed = sum(self._pages_for(len(s.tokens)) - len(s.pages) for s in self._running)
        spare = self.pool.free - owed
        while self._waiting and len(self._running) < self.limits.max_running:
            needed = self._pages_for(len(self._waiting[0].tokens))
            if needed > spare:
                break
            spare -= needed
            self._running.append(self._waiting.popleft())

    def _share(self, budget: int) -> list[tuple[_Sequence, int]]:
        """Divides `budget` rows among those in prefill: evenly, what is left over to the oldest."""
        prefilling = [s for s in self._running if s.pending > 1]
        shares: list[tuple[_Sequence, int]] = []
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

    def _make_room(self, sequence: _Sequence, wanted: int, rows: dict[int, int]) -> int:
        """Gives a running sequence pages for up to `wanted` more positions; how many it can have.

        Preempts newer sequences for the first of them (rule 4), and takes those out of `rows`. 0
        when the sequence has itself been preempted, or must wait.
        """
        held = len(sequence.pages) * self.limits.page_size
        if sequence.computed + wanted <= held:
            return wanted
        if sequence not in self._running:
            return 0  # preempted by an older one in this very step
        if sequence.computed == held:
            while not self.pool.free:
                victim = self._running[-1]
                if victim is sequence:
                    return 0
                self._preempt(victim)
                rows.pop(victim.request.seq_id, None)
        count = min(
            self._pages_for(sequence.computed + wanted) - len(sequence.pages), self.pool.free
        )
        sequence.pages += self.pool.allocate(sequence.request.seq_id, count)
        return min(wanted, len(sequence.pages) * self.limits.page_size - sequence.computed)

    def _batch(self, rows: dict[int, int], decoding: set[int]) -> Batch:
        steps: list[SequenceStep] = []
        tokens: list[int] = []
        output_rows: list[int] = []
        decode_rows = 0
        for seq_id, count in rows.items():
            sequence = self._by_id[seq_id]
            begin = sequence.computed
            chunk = tuple(sequence.tokens[begin : begin + count])
            last = begin + count == len(sequence.tokens)
            pages = sequence.pages[: self._pages_for(begin + count)]
            steps.append(SequenceStep(seq_id, chunk, begin, pages, last))
            tokens += chunk
            if last:
                output_rows.append(len(tokens) - 1)
            decode_rows += seq_id in decoding
        return Batch(tuple(steps), tuple(tokens), tuple(output_rows), decode_rows)

    def _finish(self, sequence: _Sequence, token: int) -> FinishReason | None:
        if token in sequence.request.eos_ids:
            return FinishReason.EOS
        if len(sequence.tokens) >= sequence.limit:
            return sequence.limit_reason
        return None

    def _outgrown(self, sequence: _Sequence) -> HearthError:
        lim, length = self.limits, len(sequence.tokens)
        return HearthError(
            Reason.OUT_OF_MEMORY,
            f"the request has {length} tokens by now, and the KV cache has room for "
            f"{lim.max_pages * lim.page_size} positions ({lim.max_pages} pages of {lim.page_size})",
            {"positions": length, "maxPages": lim.max_pages, "pageSize": lim.page_size},
        )

    def _preempt(self, sequence: _Sequence) -> None:
        self._requeue(sequence)
        self.preemptions += 1

    def _requeue(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self.pool.release(sequence.request.seq_id, sequence.pages)
        sequence.pages = ()
        sequence.computed = 0
        # It is newer than all that run and older than all that wait: the front keeps the order.
        self._waiting.appendleft(sequence)

    def _end(self, sequence: _Sequence) -> None:
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self.pool.release(sequence.request.seq_id, sequence.pages)
        sequence.pages = ()
        del self._by_id[sequence.request.seq_id]
