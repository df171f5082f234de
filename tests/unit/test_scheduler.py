"""The scheduler: examples of each rule, then random histories that hold all invariants."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from serving_fakes import FakeRunner, expected, letters

from hearth.common.errors import HearthError
from hearth.common.metrics import phase_of
from hearth.root.scheduling.batch import Batch, FinishReason, Limits, Request, Sampled
from hearth.root.scheduling.scheduler import Scheduler

EOS = frozenset({9})


def limits(**changes: Any) -> Limits:
    values: dict[str, Any] = {
        "context_size": 64,
        "max_pages": 64,
        "page_size": 4,
        "max_step_tokens": 8,
    }
    return Limits(**{**values, "max_running": 4, "max_waiting": 4, **changes})


def prompt(length: int, start: int = 100) -> tuple[int, ...]:
    return tuple(range(start, start + length))


def step(scheduler: Scheduler, token: int = 1) -> tuple[Batch, list[Sampled]]:
    batch = scheduler.schedule()
    assert batch is not None
    tokens = {s.seq_id: (token,) for s in batch.sequences if s.outputs}
    return batch, scheduler.step_finished(batch, tokens)


def rows(batch: Batch) -> dict[int, int]:
    return {s.seq_id: len(s.tokens) for s in batch.sequences}


def test_prefill_in_chunks_then_decode() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Request(1, prompt(10), max_tokens=3))
    first, none = step(scheduler)
    assert (rows(first), first.output_rows, first.decode_rows, none) == ({1: 8}, (), 0, [])
    assert (first.sequences[0].kept_pages, first.sequences[0].new_pages) == (0, (0, 1))
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
    assert scheduler.pool.available == 64


def test_each_of_several_batches_takes_its_part_of_the_decoding_sequences() -> None:
    scheduler = Scheduler(limits(max_running=8, batches=3, page_size=8))
    for number in range(8):
        scheduler.submit(Request(number, prompt(1, 100 + number), max_tokens=3))
    begun = [scheduler.schedule() for _ in range(3)]
    parts = [sorted(rows(batch)) for batch in begun if batch is not None]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert scheduler.schedule() is None
    # Formed again every round: those that end leave no gap.
    for batch in begun:
        assert batch is not None
        scheduler.step_finished(batch, {s.seq_id: (1,) for s in batch.sequences})
    for number in (0, 1, 2):
        scheduler.cancel(number)
    sizes = [len(batch.sequences) for batch in iter(scheduler.schedule, None)]
    assert sizes == [2, 2, 1]


def test_a_prompt_is_cut_for_several_batches() -> None:
    """Into halves as long as they are long enough: the last steps are the shortest."""
    sizes = {"max_step_tokens": 128, "context_size": 1024, "page_size": 16}
    scheduler = Scheduler(limits(batches=2, **sizes))
    scheduler.submit(Request(1, prompt(400, 0), max_tokens=1))
    chunks = [batch.rows for batch in iter(scheduler.schedule, None)]
    assert chunks == [128, 128, 72, 36, 32, 4]
    one = Scheduler(limits(**sizes))
    one.submit(Request(1, prompt(400, 0), max_tokens=1))
    assert [batch.rows for batch in iter(one.schedule, None)] == [128, 128, 128, 16]


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
    scheduler.submit(Request(2, prompt(30, 200)))
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
        held.append(batch.sequences[0].kept_pages + len(batch.sequences[0].new_pages))
    assert held == [1, 1, 2, 2, 2, 2]
    assert scheduler.pool.available == 62


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
    scheduler.submit(Request(2, prompt(8, 200)))
    scheduler.submit(Request(3, prompt(8, 300)))
    batch, _ = step(scheduler)
    # Four pages are owed to the first and two to the second, though only three are taken yet.
    assert rows(batch) == {1: 4, 2: 4}
    assert (scheduler.pool.available, scheduler.running, scheduler.waiting) == (4, 2, 1)
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
    with pytest.raises(HearthError, match="the limits are 2 and 1") as error:
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
    batch = scheduler.schedule()
    assert batch is not None
    assert scheduler.cancel(1)
    assert not scheduler.cancel(1)
    assert scheduler.step_finished(batch, {1: (5,), 2: (6,)}) == [Sampled(2, 6, None)]
    scheduler.check()


def test_a_failed_step_ends_all() -> None:
    scheduler = Scheduler(limits(max_running=1))
    scheduler.submit(Request(1, prompt(2)))
    scheduler.submit(Request(2, prompt(2)))
    scheduler.schedule()
    assert scheduler.step_failed() == [1, 2]
    assert scheduler.idle
    assert scheduler.pool.available == 64
    scheduler.check()


def test_events_out_of_order_are_errors() -> None:
    scheduler = Scheduler(limits())
    with pytest.raises(RuntimeError, match="no step in flight"):
        scheduler.step_finished(Batch((), (), (), 0), {})
    scheduler.submit(Request(1, prompt(2)))
    with pytest.raises(ValueError, match="already known"):
        scheduler.submit(Request(1, prompt(2)))
    first = scheduler.schedule()
    assert first is not None
    assert scheduler.schedule() is None, "its next token is not known yet"
    scheduler.submit(Request(2, prompt(3)))
    second = scheduler.schedule()
    assert second is not None
    with pytest.raises(RuntimeError, match=r"in flight are \[1@0\+2\], \[2@0\+3\]; .*batch 2 of"):
        scheduler.step_finished(second, {2: (5,)})
    with pytest.raises(ValueError, match="sequence 1 has logits of 1 rows but received 0 tokens"):
        scheduler.step_finished(first, {})
    with pytest.raises(ValueError, match="received 2 tokens"):
        scheduler.step_finished(first, {1: (5, 6)})
    # What was refused changed nothing.
    scheduler.check()
    assert scheduler.step_finished(first, {1: (5,)}) == [Sampled(1, 5, None)]
    assert scheduler.step_finished(second, {2: (5,)}) == [Sampled(2, 5, None)]
    assert scheduler.cancel(2)


def flight(scheduler: Scheduler) -> Batch:
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.check()
    return batch


def test_chunks_of_one_prompt_are_in_several_batches_and_decode_in_one() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Request(1, prompt(20)))
    batches = [flight(scheduler) for _ in range(3)]
    assert [b.sequences[0].position for b in batches] == [0, 8, 16]
    assert [b.output_rows for b in batches] == [(), (), (3,)]
    # The pages that each adds to the table of the one before.
    assert [b.sequences[0].kept_pages for b in batches] == [0, 2, 4]
    assert [b.sequences[0].new_pages for b in batches] == [(0, 1), (2, 3), (4,)]
    assert scheduler.schedule() is None
    assert scheduler.in_flight == 3
    assert scheduler.step_finished(batches[0], {}) == []
    assert scheduler.step_finished(batches[1], {}) == []
    assert scheduler.schedule() is None
    assert scheduler.step_finished(batches[2], {1: (7,)}) == [Sampled(1, 7, None)]
    assert flight(scheduler).tokens == (7,)


def test_pages_of_a_cancelled_sequence_are_freed_when_no_batch_uses_them() -> None:
    scheduler = Scheduler(limits(max_pages=5))
    scheduler.submit(Request(1, prompt(16), max_tokens=1))
    first, second = flight(scheduler), flight(scheduler)
    scheduler.submit(Request(2, prompt(8), max_tokens=2))
    assert scheduler.schedule() is None, "the pages of 1 are owed or taken"
    assert scheduler.cancel(1)
    scheduler.check()
    assert scheduler.pool.available == 1
    with pytest.raises(ValueError, match="sequence 1 is already known"):
        scheduler.submit(Request(1, prompt(2)))
    assert scheduler.step_finished(first, {}) == []
    assert scheduler.pool.available == 1
    assert scheduler.step_finished(second, {}) == []
    scheduler.check()
    assert scheduler.pool.available == 5
    batch = flight(scheduler)
    assert (rows(batch), batch.ended) == ({2: 8}, (1,))


def test_a_sequence_in_flight_is_not_preempted() -> None:
    scheduler = Scheduler(limits(max_pages=4, context_size=16))
    scheduler.submit(Request(1, prompt(4), max_tokens=12))
    first = flight(scheduler)
    scheduler.submit(Request(2, prompt(4, 200), max_tokens=12))
    second = flight(scheduler)
    for _ in range(3):  # until each holds two pages, the second of them one token short of full
        for batch in (first, second):
            assert scheduler.step_finished(batch, {s.seq_id: (3,) for s in batch.sequences})
            if batch is first:
                first = flight(scheduler)
            else:
                second = flight(scheduler)
    while rows(first) == {1: 1} and first.sequences[0].position < 7:
        scheduler.step_finished(first, {1: (3,)})
        first = flight(scheduler)
    scheduler.step_finished(second, {2: (3,)})
    second = flight(scheduler)
    scheduler.step_finished(first, {1: (3,)})
    # It needs its third page, none is free, and the only newer one is in flight.
    assert scheduler.pool.available == 0
    assert scheduler.schedule() is None
    assert scheduler.preemptions == 0
    scheduler.step_finished(second, {2: (3,)})
    batch = flight(scheduler)
    assert (rows(batch), batch.ended, scheduler.preemptions) == ({1: 1}, (2,), 1)


def test_drafts_are_verified_in_one_step() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Request(1, prompt(3), max_tokens=20))
    step(scheduler, 5)
    assert scheduler.propose(1, (6, 7, 8))
    assert not scheduler.propose(2, (6,))
    batch = flight(scheduler)
    (part,) = batch.sequences
    assert (part.tokens, part.drafts, part.position) == ((5, 6, 7, 8), (6, 7, 8), 3)
    assert (part.outputs, batch.output_rows, batch.decode_rows) == (4, (0, 1, 2, 3), 4)
    assert scheduler.schedule() is None
    with pytest.raises(ValueError, match=r"drafts \(6,\) to verify, but \(9,\) were accepted"):
        scheduler.step_finished(batch, {1: (9, 1)})
    # The first draft is right, the second is not: its position and the next are written again.
    got = scheduler.step_finished(batch, {1: (6, 9)})
    assert got == [Sampled(1, 6, None), Sampled(1, 9, None)]
    scheduler.check()
    batch = flight(scheduler)
    assert (batch.tokens, batch.sequences[0].position, batch.output_rows) == ((9,), 5, (0,))


@pytest.mark.parametrize("most", [0, 2])
def test_drafts_are_limited_to_what_a_state_can_go_back(most: int) -> None:
    scheduler = Scheduler(limits(most_drafts=most))
    scheduler.submit(Request(1, prompt(3), max_tokens=20))
    step(scheduler, 5)
    assert scheduler.propose(1, (6, 7, 8))
    batch = flight(scheduler)
    assert (rows(batch), batch.sequences[0].undo) == ({1: 1 + most}, most)


def test_what_follows_the_end_of_a_sequence_is_dropped() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Request(1, prompt(3), eos_ids=EOS))
    step(scheduler, 5)
    scheduler.propose(1, (9, 7, 8))
    batch = flight(scheduler)
    got = scheduler.step_finished(batch, {1: (9, 7, 8, 1)})
    assert got == [Sampled(1, 9, FinishReason.EOS)]
    assert scheduler.idle
    scheduler.submit(Request(2, prompt(3), max_tokens=4))
    step(scheduler, 5)
    scheduler.propose(2, (6, 7, 8, 9))
    # Three tokens are left to make: two drafts and the one sampled after them.
    batch = flight(scheduler)
    assert batch.tokens == (5, 6, 7)
    got = scheduler.step_finished(batch, {2: (6, 7, 8)})
    assert [(s.token, s.finish) for s in got] == [(6, None), (7, None), (8, FinishReason.LENGTH)]
    assert scheduler.pool.available == 64


def test_drafts_take_only_rows_and_pages_that_are_left() -> None:
    scheduler = Scheduler(limits(max_pages=8))
    scheduler.submit(Request(1, prompt(4), max_tokens=20))
    step(scheduler, 5)
    scheduler.submit(Request(2, prompt(12)))
    scheduler.propose(1, (6, 7, 8))
    assert rows(flight(scheduler)) == {1: 1, 2: 7}, "prefill takes all other rows"
    scheduler = Scheduler(limits(max_pages=2))
    scheduler.submit(Request(1, prompt(4), max_tokens=4))
    step(scheduler, 5)
    scheduler.propose(1, (6, 7, 8))
    assert rows(flight(scheduler)) == {1: 3}
    scheduler = Scheduler(limits(max_pages=3))
    scheduler.submit(Request(1, prompt(7), max_tokens=5))
    step(scheduler, 5)
    scheduler.submit(Request(2, prompt(4), max_tokens=1))
    scheduler.propose(1, (6, 7, 8))
    # The last free page goes to the prompt: the drafts have what the second page still holds.
    assert rows(flight(scheduler)) == {1: 1, 2: 4}


def test_the_first_batch_resets_page_tables_and_later_ones_name_what_ended() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Request(1, prompt(2), max_tokens=1))
    scheduler.submit(Request(2, prompt(2), max_tokens=9))
    batch, _ = step(scheduler)
    assert (batch.reset, batch.ended) == (True, ())
    batch, _ = step(scheduler)
    assert (batch.reset, batch.ended) == (False, (1,))
    scheduler.rewind()
    batch, _ = step(scheduler)
    assert (batch.reset, batch.ended, batch.sequences[0].kept_pages) == (True, (), 0)
    scheduler.submit(Request(3, prompt(2)))
    assert scheduler.cancel(3), "it never had a table"
    batch, _ = step(scheduler)
    assert (batch.reset, batch.ended) == (False, ())
    scheduler.rewind(keep=True)
    batch, _ = step(scheduler)
    assert (batch.reset, batch.ended, batch.sequences[0].kept_pages) == (False, (), 0)
    scheduler.step_failed()
    scheduler.submit(Request(4, prompt(2)))
    assert flight(scheduler).reset


@pytest.mark.parametrize("name", ["context_size", "max_pages", "page_size", "max_running"])
def test_limits_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        limits(**{name: 0})


def test_a_step_has_a_row_for_each_running_sequence() -> None:
    with pytest.raises(ValueError, match="max_running is 9, max_step_tokens 8"):
        limits(max_running=9)


class Histories(RuleBasedStateMachine):
    """Any order of submissions, cancellations, drafts, steps and failures, in too small a cache.

    Up to `depth` batches are in flight. A batch writes its tokens when it is scheduled and reads
    the cache when it is done. So a page that is freed too early changes the text.
    """

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
        self.depth = 1
        self.scheduler = Scheduler(self.limits)
        # Recomputes each next token from the pages, so any mix-up changes the text.
        self.runner = FakeRunner(page_size=3, max_step_tokens=7)
        self.flights: list[tuple[Batch, list[list[int]]]] = []
        self.next_id = 0
        self.requests: dict[int, Request] = {}
        self.made: dict[int, list[int]] = {}
        self.done: list[tuple[Request, list[int]]] = []
        # Positions scheduled since the sequence last began: contiguous, or from 0 again.
        self.scheduled: dict[int, int] = {}

    @initialize(
        depth=st.integers(1, 4),
        batches=st.integers(1, 4),
        snapshots=st.sampled_from([None, None, 0, 1, 3]),
        drafts=st.sampled_from([0, 2, 5]),
    )
    def choose(self, depth: int, batches: int, snapshots: int | None, drafts: int) -> None:
        """snapshots: of a state that goes back `drafts` positions; None: there is no such state."""
        self.depth = depth
        self.limits = replace(self.limits, batches=batches)
        self.scheduler = Scheduler(self.limits)
        if snapshots is not None:
            self.limits = replace(
                self.limits, stateful=True, most_drafts=drafts, snapshots=snapshots
            )
            self.scheduler = Scheduler(self.limits)
            self.runner.recurrent = True

    @rule(
        length=st.integers(1, 20),
        max_tokens=st.integers(0, 12),
        # Few beginnings, so that many prompts begin alike.
        tokens=st.sampled_from([100, 100, 101, 150]),
        eos=st.frozensets(st.sampled_from(b"abcdefgh"), max_size=2),
        prefix_cache=st.sampled_from([True, True, True, False]),
        salt=st.sampled_from([b"", b"", b"other"]),
    )
    def submit(
        self,
        length: int,
        max_tokens: int,
        tokens: int,
        eos: frozenset[int],
        prefix_cache: bool,
        salt: bytes,
    ) -> None:
        ids = prompt(length, tokens)
        request = Request(self.next_id, ids, max_tokens, eos, prefix_cache, salt)
        self.send(request)

    def send(self, request: Request) -> None:
        full = len(self.requests) >= 7
        try:
            self.scheduler.submit(request)
        except HearthError as error:
            small = error.reason == "OUT_OF_MEMORY" and self.limits.max_pages < 9
            assert small or (full and error.reason == "QUEUE_FULL")
        else:
            assert not full
            self.requests[self.next_id] = request
            self.made[self.next_id] = []
            self.scheduled[self.next_id] = 0
        self.next_id += 1

    @rule(again=st.integers(0, 30), more=st.lists(st.integers(97, 122), max_size=6))
    def next_turn(self, again: int, more: list[int]) -> None:
        """A conversation goes on: an earlier request and its answer, then new tokens."""
        if self.done:
            before, made = self.done[again % len(self.done)]
            ids = (*before.prompt, *made, *more)[:23]
            self.send(Request(self.next_id, ids, 2, prefix_cache=True, salt=before.salt))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), distrust=st.booleans())
    def cancel(self, data: st.DataObject, distrust: bool) -> None:
        victim = data.draw(st.sampled_from(sorted(self.requests)))
        assert self.scheduler.cancel(victim, distrust=distrust)
        assert not self.scheduler.cancel(victim)
        del self.requests[victim]

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), right=st.integers(0, 6), wrong=st.integers(0, 3))
    def propose(self, data: st.DataObject, right: int, wrong: int) -> None:
        """Drafts of which the first `right` come true."""
        seq_id = data.draw(st.sampled_from(sorted(self.requests)))
        known = (*self.requests[seq_id].prompt, *self.made[seq_id])
        assert self.scheduler.propose(seq_id, (*expected(known, right), *[1] * wrong))

    @precondition(lambda self: self.requests)
    @rule(count=st.integers(1, 6))
    def steps(self, count: int) -> None:
        for _ in range(count):
            if not self.begin():
                assert self.flights or not self.requests
                self.finish()

    @rule()
    def begin_one(self) -> None:
        self.begin()

    @rule()
    def finish_one(self) -> None:
        self.finish()

    @precondition(lambda self: self.requests)
    @rule()
    def fail(self) -> None:
        self.begin()
        assert self.scheduler.step_failed() == sorted(self.requests)
        self.requests.clear()
        self.lose()

    @rule(refit=st.sampled_from([None, 6, 8, 9]))
    def rewind(self, refit: int | None) -> None:
        """The cluster is lost, and comes back with as many pages or others."""
        in_flight = [s.seq_id for batch, _ in self.flights for s in batch.sequences]
        if refit is None:
            rewound = self.scheduler.rewind()
            assert rewound == [i for i in dict.fromkeys(in_flight) if i in self.requests]
        else:
            self.limits = replace(self.limits, max_pages=refit)
            for seq_id, error in self.scheduler.refit(self.limits):
                assert error.reason == "OUT_OF_MEMORY"
                del self.requests[seq_id]
        self.lose()

    @rule()
    def rewind_in_place(self) -> None:
        """The cluster is formed again on the same nodes, which have kept pages and snapshots."""
        self.scheduler.rewind(keep=True)
        self.scheduler.rewind(keep=True)
        self.flights.clear()
        self.runner.forget_tables()
        self.scheduled = dict.fromkeys(self.scheduled, 0)

    def lose(self) -> None:
        """Forget the contents of the cache."""
        self.flights.clear()
        self.runner.cache.clear()
        self.runner.states.clear()
        self.runner.snapshots.clear()
        self.scheduled = dict.fromkeys(self.scheduled, 0)

    def begin(self) -> bool:
        if len(self.flights) == self.depth:
            return False
        batch = self.scheduler.schedule()
        if batch is None:
            return False
        assert len(batch.sequences) <= self.limits.max_running
        decode = 0
        written: list[int] = []
        for s in batch.sequences:
            # It goes on, or begins: at 0, or after full pages that it takes over.
            begun = s.position - s.position % 3 if s.kept_pages == 0 else s.position
            assert s.position in (self.scheduled[s.seq_id], begun)
            self.scheduled[s.seq_id] = s.position + len(s.tokens)
            assert self.scheduled[s.seq_id] <= self.limits.context_size
            if decode < batch.decode_rows:
                assert s.outputs == len(s.tokens) <= 1 + self.limits.most_drafts
                decode += len(s.tokens)
            else:
                assert s.outputs <= 1
        assert decode == batch.decode_rows
        phase = phase_of(batch.rows, len(batch.output_rows))
        assert phase == ("decode" if decode == batch.rows else "prefill")
        tables = self.runner.write(batch)
        for s, table in zip(batch.sequences, tables, strict=True):
            assert set(table) <= set(range(self.limits.max_pages))
            assert len(set(table)) == len(table)
            written += table[s.position // 3 :]
        # No page is written by two sequences, or written by one and read by another.
        assert len(written) == len(set(written))
        for s, table in zip(batch.sequences, tables, strict=True):
            assert not set(table[: s.position // 3]) & set(written)
        # Ended sequences were forgotten.
        assert len(self.runner.tables) <= self.limits.max_running
        self.flights.append((batch, tables))
        return True

    def finish(self) -> None:
        if not self.flights:
            return
        batch, tables = self.flights.pop(0)
        best = iter(self.runner.read(batch, tables).logits.argmax(axis=1).tolist())
        tokens: dict[int, list[int]] = {}
        for s in batch.sequences:
            given = [next(best) for _ in range(s.outputs)]
            right = [token == draft for token, draft in zip(given, s.drafts, strict=False)]
            if given:
                accepted = right.index(False) if False in right else len(right)
                tokens[s.seq_id] = given[: accepted + 1]
        for sampled in self.scheduler.step_finished(batch, tokens):
            made = self.made[sampled.seq_id]
            made.append(sampled.token)
            request = self.requests[sampled.seq_id]
            assert made == expected(request.prompt, len(made), letters)
            room = self.limits.context_size - len(request.prompt)
            if self.limits.max_pages == 9:
                wanted = min(request.max_tokens or room, room)
                ended = len(made) == wanted or sampled.token in request.eos_ids
                assert (sampled.finish is not None) == ended
            if sampled.finish is not None:
                self.done.append((request, made))
                assert (sampled.finish is FinishReason.EOS) == (sampled.token in request.eos_ids)
                del self.requests[sampled.seq_id]
        for s in batch.sequences:
            if s.outputs and s.seq_id in self.requests:
                known = len(self.requests[s.seq_id].prompt) + len(self.made[s.seq_id])
                self.scheduled[s.seq_id] = known - 1

    @invariant()
    def agrees(self) -> None:
        self.scheduler.check()
        assert self.scheduler.in_flight == len(self.flights)
        assert self.scheduler.idle == (not self.requests and not self.flights)
        if self.scheduler.idle:
            assert self.scheduler.pool.available == self.limits.max_pages

    def teardown(self) -> None:
        bound = 4000
        while not self.scheduler.idle and bound:
            if not self.begin():
                assert self.flights
                self.finish()
            bound -= 1
        assert not self.requests, "a request never ended"
        self.agrees()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
