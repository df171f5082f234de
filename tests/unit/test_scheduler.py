"""The scheduler: examples of each rule, then random histories that hold all invariants."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from serving_fakes import FakeRunner, expected, letters

from hearth.common.errors import HearthError
from hearth.root.scheduling.batch import Batch, FinishReason, Limits, Request, Sampled
from hearth.root.scheduling.scheduler import Scheduler

EOS = frozenset({9})


def limits(**changes: int) -> Limits:
    values = {"context_size": 64, "max_pages": 64, "page_size": 4, "max_step_tokens": 8}
    return Limits(**{**values, "max_running": 4, "max_waiting": 4, **changes})


def prompt(length: int, start: int = 100) -> tuple[int, ...]:
    return tuple(range(start, start + length))


def step(scheduler: Scheduler, token: int = 1) -> tuple[Batch, list[Sampled]]:
    batch = scheduler.schedule()
    assert batch is not None
    tokens = {s.seq_id: token for s in batch.sequences if s.wants_logits}
    return batch, scheduler.step_finished(tokens)


def rows(batch: Batch) -> dict[int, int]:
    return {s.seq_id: len(s.tokens) for s in batch.sequences}


def test_prefill_in_chunks_then_decode() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Request(1, prompt(10), max_tokens=3))
    first, none = step(scheduler)
    assert (rows(first), first.output_rows, first.decode_rows, none) == ({1: 8}, (), 0, [])
    assert first.sequences[0].pages == (0, 1)
    second, sampled = step(scheduler, 7)
    assert second.tokens == (108, 109)
    assert second.sequences[0].position == 8
    assert second.output_rows == (1,)
    assert sampled == [Sampled(1, 7, None)]
    third, sampled = step(scheduler, 5)
    assert (third.tokens, third.decode_rows, third.sequences[0].position) == ((7,), 1, 10)
    assert sampled == [Sampled(1, 5, None)]
    _, sampled = step(scheduler, 4)
    assert sampled == [Sampled(1, 4, FinishReason.LENGTH)]
    assert scheduler.idle
    assert scheduler.schedule() is None
    assert scheduler.pool.free == 64


def test_decode_comes_before_prefill_and_is_not_held_up() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Request(1, prompt(2), max_tokens=20))
    step(scheduler)
    scheduler.submit(Request(2, prompt(30), max_tokens=2))
    for expected_position in range(2, 6):
        batch, sampled = step(scheduler)
        assert rows(batch) == {1: 1, 2: 7}
        assert batch.sequences[0].seq_id == 1
        assert batch.sequences[0].position == expected_position
        assert [s.seq_id for s in sampled] == [1]


def test_prefills_share_a_step() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Request(1, prompt(30)))
    scheduler.submit(Request(2, prompt(30)))
    scheduler.submit(Request(3, prompt(2)))
    batch, _ = step(scheduler)
    # Two rows each, and what is left to the oldest.
    assert rows(batch) == {1: 4, 2: 2, 3: 2}


def test_pages_come_as_the_sequence_grows() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Request(1, prompt(3), max_tokens=40))
    held = []
    for _ in range(6):
        batch, _ = step(scheduler)
        held.append(len(batch.sequences[0].pages))
    assert held == [1, 1, 2, 2, 2, 2]
    assert scheduler.pool.free == 62


def test_the_newest_is_preempted_and_prefilled_again_with_what_it_made() -> None:
    scheduler = Scheduler(limits(max_pages=4, context_size=16))
    scheduler.submit(Request(1, prompt(4), max_tokens=12))
    scheduler.submit(Request(2, prompt(4, 200), max_tokens=12))
    while scheduler.preemptions == 0:
        batch, _ = step(scheduler, 3)
        scheduler.check()
    assert rows(batch) == {1: 1}
    assert (scheduler.running, scheduler.waiting) == (1, 1)
    while 1 in rows(batch):
        batch, _ = step(scheduler, 3)
        scheduler.check()
    made = 4  # 8 positions in 2 pages of the 4: prompt and 4 tokens computed, the 5th sampled
    assert batch.sequences[0].position == 0
    assert batch.tokens == (*prompt(4, 200), *[3] * made)
    sampled: list[Sampled] = []
    while not scheduler.idle:
        _, sampled = step(scheduler, 3)
        scheduler.check()
    assert sampled == [Sampled(2, 3, FinishReason.LENGTH)]


def test_a_waiting_sequence_is_let_in_when_its_known_tokens_have_pages() -> None:
    scheduler = Scheduler(limits(max_pages=6))
    scheduler.submit(Request(1, prompt(16), max_tokens=4))
    scheduler.submit(Request(2, prompt(8)))
    scheduler.submit(Request(3, prompt(8)))
    batch, _ = step(scheduler)
    # Four pages are owed to the first and two to the second, though only three are taken yet.
    assert rows(batch) == {1: 4, 2: 4}
    assert (scheduler.pool.free, scheduler.running, scheduler.waiting) == (4, 2, 1)
    step(scheduler)
    assert (scheduler.running, scheduler.waiting, scheduler.preemptions) == (2, 1, 0)


def test_a_sequence_preempted_while_the_step_is_made_gets_no_pages() -> None:
    """A prefill that was given a share is preempted by an older one before its turn comes.

    The history was found by a random search; it takes such pages away from a waiting sequence.
    """
    scheduler = Scheduler(
        Limits(context_size=24, max_pages=8, page_size=3, max_step_tokens=5, max_running=3)
    )
    for seq_id, (length, max_tokens) in enumerate([(17, 12), (11, 2), (2, 8), (9, 0)]):
        scheduler.submit(Request(seq_id, prompt(length), max_tokens))
        step(scheduler)
        scheduler.check()
    while not scheduler.idle:
        step(scheduler)
        scheduler.check()
    assert scheduler.preemptions > 0


def test_finish_reasons() -> None:
    scheduler = Scheduler(limits(context_size=8))
    scheduler.submit(Request(1, prompt(3), eos_ids=EOS))
    assert step(scheduler, 9)[1] == [Sampled(1, 9, FinishReason.EOS)]
    scheduler.submit(Request(2, prompt(3)))
    made = 0
    while not scheduler.idle:
        _, sampled = step(scheduler, 9)
        made += 1
    assert (made, sampled[0].finish) == (5, FinishReason.CONTEXT)
    scheduler.submit(Request(3, prompt(3), max_tokens=100))
    while not scheduler.idle:
        _, sampled = step(scheduler)
    assert sampled[0].finish is FinishReason.CONTEXT
    scheduler.submit(Request(4, prompt(3), max_tokens=5))
    while not scheduler.idle:
        _, sampled = step(scheduler)
    assert sampled[0].finish is FinishReason.LENGTH


def test_what_cannot_fit_is_refused_with_both_numbers() -> None:
    scheduler = Scheduler(limits(context_size=32, max_pages=4))
    with pytest.raises(HearthError, match="has 32 tokens and the context 32 positions") as error:
        scheduler.submit(Request(1, prompt(32)))
    assert error.value.reason == "PROMPT_TOO_LONG"
    with pytest.raises(HearthError, match=r"need 19 positions of KV cache.* has 16") as error:
        scheduler.submit(Request(1, prompt(10), max_tokens=10))
    assert error.value.reason == "OUT_OF_MEMORY"
    with pytest.raises(HearthError, match="need 17 positions"):
        scheduler.submit(Request(1, prompt(17)))
    with pytest.raises(HearthError, match="0 tokens"):
        scheduler.submit(Request(1, ()))
    assert scheduler.idle
    # As many as there is room for: 16 positions in pages, and the last token needs none.
    scheduler.submit(Request(2, prompt(10)))
    made = 0
    while not scheduler.idle:
        made += len(step(scheduler)[1])
    assert made == 7


def test_the_queue_is_bounded() -> None:
    scheduler = Scheduler(limits(max_running=2, max_waiting=1))
    for seq_id in range(3):
        scheduler.submit(Request(seq_id, prompt(2)))
    with pytest.raises(HearthError, match="the root takes 2 and 1") as error:
        scheduler.submit(Request(3, prompt(2)))
    assert (error.value.reason, error.value.code.name) == ("QUEUE_FULL", "RESOURCE_EXHAUSTED")
    step(scheduler)
    assert (scheduler.running, scheduler.waiting) == (2, 1)
    scheduler.cancel(0)
    scheduler.submit(Request(3, prompt(2)))


def test_cancel_in_flight_ignores_its_token() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Request(1, prompt(2)))
    scheduler.submit(Request(2, prompt(2)))
    assert scheduler.schedule() is not None
    assert scheduler.cancel(1)
    assert not scheduler.cancel(1)
    assert scheduler.step_finished({1: 5, 2: 6}) == [Sampled(2, 6, None)]
    scheduler.check()


def test_a_failed_step_ends_all() -> None:
    scheduler = Scheduler(limits(max_running=1))
    scheduler.submit(Request(1, prompt(2)))
    scheduler.submit(Request(2, prompt(2)))
    scheduler.schedule()
    assert scheduler.step_failed() == [1, 2]
    assert scheduler.idle
    assert scheduler.pool.free == 64
    scheduler.check()


def test_events_out_of_order_are_errors() -> None:
    scheduler = Scheduler(limits())
    with pytest.raises(RuntimeError, match="no step in flight"):
        scheduler.step_finished({})
    scheduler.submit(Request(1, prompt(2)))
    with pytest.raises(ValueError, match="already known"):
        scheduler.submit(Request(1, prompt(2)))
    scheduler.schedule()
    with pytest.raises(RuntimeError, match="a step is in flight"):
        scheduler.schedule()


@pytest.mark.parametrize("name", ["context_size", "max_pages", "page_size", "max_running"])
def test_limits_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        limits(**{name: 0})


def test_a_step_has_a_row_for_each_running_sequence() -> None:
    with pytest.raises(ValueError, match="max_running is 9, max_step_tokens 8"):
        limits(max_running=9)


class Histories(RuleBasedStateMachine):
    """Any order of submissions, cancellations, steps and failures, in a cache that is too small."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(
            context_size=24,
            max_pages=9,
            page_size=3,
            max_step_tokens=7,
            max_running=4,
            max_waiting=3,
        )
        self.scheduler = Scheduler(self.limits)
        # Recomputes each next token from the pages, so any mix-up changes the text.
        self.runner = FakeRunner(page_size=3, max_step_tokens=7)
        self.next_id = 0
        self.requests: dict[int, Request] = {}
        self.made: dict[int, list[int]] = {}
        # Positions computed since the sequence last began: contiguous, or from 0 again.
        self.computed: dict[int, int] = {}

    @rule(length=st.integers(1, 20), max_tokens=st.integers(0, 12), tokens=st.integers(0, 200))
    def submit(self, length: int, max_tokens: int, tokens: int) -> None:
        request = Request(self.next_id, prompt(length, tokens), max_tokens)
        full = len(self.requests) >= 7
        try:
            self.scheduler.submit(request)
        except HearthError as error:
            assert full
            assert error.reason == "QUEUE_FULL"
        else:
            assert not full
            self.requests[self.next_id] = request
            self.made[self.next_id] = []
            self.computed[self.next_id] = 0
        self.next_id += 1

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), in_flight=st.booleans())
    def cancel(self, data: st.DataObject, in_flight: bool) -> None:
        victim = data.draw(st.sampled_from(sorted(self.requests)))
        if not in_flight:
            assert self.scheduler.cancel(victim)
            del self.requests[victim]
            return
        batch = self.scheduler.schedule()
        assert batch is not None
        assert self.scheduler.cancel(victim)
        del self.requests[victim]
        self.finish(batch)

    @precondition(lambda self: self.requests)
    @rule(count=st.integers(1, 6))
    def steps(self, count: int) -> None:
        for _ in range(count):
            batch = self.scheduler.schedule()
            if batch is None:
                assert not self.requests
                return
            self.finish(batch)

    @precondition(lambda self: self.requests)
    @rule()
    def fail(self) -> None:
        assert self.scheduler.schedule() is not None
        assert self.scheduler.step_failed() == sorted(self.requests)
        self.requests.clear()

    def finish(self, batch: Batch) -> None:
        pages = [page for s in batch.sequences for page in s.pages]
        assert len(pages) == len(set(pages))
        assert len(batch.sequences) <= self.limits.max_running
        kinds = [
            len(s.tokens) == 1 and s.wants_logits for s in batch.sequences[: batch.decode_rows]
        ]
        assert all(kinds)
        for s in batch.sequences:
            assert s.position in (self.computed[s.seq_id], 0)
            self.computed[s.seq_id] = s.position + len(s.tokens)
            assert self.computed[s.seq_id] <= self.limits.context_size
            # Never more pages than the positions so far need.
            assert len(s.pages) == -(-self.computed[s.seq_id] // self.limits.page_size)
        best = self.runner.run(batch).logits.argmax(axis=1)
        wanting = [s.seq_id for s in batch.sequences if s.wants_logits]
        tokens = dict(zip(wanting, map(int, best), strict=True))
        for sampled in self.scheduler.step_finished(tokens):
            made = self.made[sampled.seq_id]
            made.append(sampled.token)
            request = self.requests[sampled.seq_id]
            room = self.limits.context_size - len(request.prompt)
            wanted = min(request.max_tokens or room, room)
            assert (sampled.finish is not None) == (len(made) == wanted)
            if sampled.finish is not None:
                assert made == expected(request.prompt, wanted, letters)
                del self.requests[sampled.seq_id]

    @invariant()
    def agrees(self) -> None:
        self.scheduler.check()
        assert self.scheduler.idle == (not self.requests)
        if self.scheduler.idle:
            assert self.scheduler.pool.free == self.limits.max_pages

    def teardown(self) -> None:
        bound = 2000
        while not self.scheduler.idle and bound:
            batch = self.scheduler.schedule()
            assert batch is not None
            self.finish(batch)
            bound -= 1
        assert not self.requests, "a request never ended"
        self.agrees()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
