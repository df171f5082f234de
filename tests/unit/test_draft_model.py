"""A draft model beside the engine: its KV cache follows the text, and no answer changes."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import family_models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_fakes import BOS, VOCAB, ByteTokenizer, FakeRunner, letters

from hearth.common.candidates import WHOLE_ROWS, Candidates
from hearth.common.errors import HearthError, Reason
from hearth.converter import open_model
from hearth.root import drafts
from hearth.root.app import core
from hearth.root.engine.draft_model import DraftModel
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta, Done, Event
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.planning.blueprint import draw
from hearth.root.scheduling.batch import Batch, FinishReason, Limits, Request, StepOutput
from hearth.root.scheduling.sequence import Sequence as Running
from hearth.root.scheduling.speculation import Speculation
from hearth.root.settings import ClusterSettings

LIMITS = Limits(context_size=256, max_pages=256, page_size=4, max_step_tokens=32, max_running=4)


class Whole(FakeRunner):
    """A model that returns whole rows, as with candidates all rows would be sorted."""

    def submit(
        self,
        batch: Batch,
        candidates: Candidates = WHOLE_ROWS,
        hidden: bool = False,
    ) -> Future[StepOutput]:
        assert candidates.count > 0
        return super().submit(batch, candidates, hidden)


def sometimes(every: int) -> Whole:
    """A draft model that is wrong after each text whose length `every` divides."""

    def next_token(history: tuple[int, ...]) -> int:
        return letters(history) ^ (len(history) % every == 0)

    return Whole(next_token)


def request(prompt: Sequence[int], salt: bytes = b"", number: int = 1) -> Running:
    """A sequence, as the scheduler has it."""
    tokens = tuple(prompt)
    return Running(Request(number, tokens, salt=salt), 0, list(tokens), 200, FinishReason.LENGTH)


def answers(
    speculation: Speculation | None, prompts: Sequence[bytes], count: int, pages: int = 256
) -> list[tuple[int, ...]]:
    """The tokens of requests that run together."""
    limits = Limits(256, pages, 4, max_step_tokens=32, max_running=4)
    engine = Engine(FakeRunner(), ByteTokenizer(), limits, speculation=speculation)
    engine.start()
    boxes = [queue.SimpleQueue[Event]() for _ in prompts]
    try:
        with engine.held():
            for prompt, box in zip(prompts, boxes, strict=True):
                params = GenerateParams((BOS, *prompt), count, Sampling(0.0), ignore_eos=True)
                engine.submit(params, box.put)
        return [answer(box) for box in boxes]
    finally:
        assert engine.stop(finish=False)


def answer(box: queue.SimpleQueue[Event]) -> tuple[int, ...]:
    tokens: list[int] = []
    while not isinstance(event := box.get(timeout=60), Done):
        assert isinstance(event, Delta), event
        tokens += event.token_ids
    return tuple(tokens)


def test_drafts_of_the_same_model_are_all_accepted() -> None:
    runner = sometimes(1000)
    speculation = Speculation(True, DraftModel(runner, LIMITS, VOCAB))
    assert answers(speculation, [b"hello"], 100) == answers(None, [b"hello"], 100)
    assert speculation.accepted == speculation.drafted == 79
    # It reads every token once, but for the last draft of a step, which is not read, and the next.
    assert sum(batch.rows for batch in runner.batches) == 6 + 98


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=6),
    st.integers(2, 7),
    st.integers(4, 40),
    st.integers(70, 120),
    st.sampled_from([None, None, 1, 3, 16]),
)
def test_drafts_change_no_answer(
    prompts: list[bytes], every: int, draft_pages: int, pages: int, undo: int | None
) -> None:
    """undo: positions that the draft model's state can go back; None: it has no state."""
    # Both run out of pages: sequences are preempted, and some get no drafts.
    limits = Limits(64, draft_pages, 4, max_step_tokens=16, max_running=3)
    runner = sometimes(every)
    if undo is not None:
        limits = replace(limits, stateful=True, most_drafts=undo)
        runner.recurrent = True
    drafter = DraftModel(runner, limits, VOCAB)
    speculation = Speculation(True, drafter)
    wanted = answers(None, prompts, 40, pages)
    assert answers(speculation, prompts, 40, pages) == wanted
    assert answers(speculation, prompts, 40, pages) == wanted
    drafter.check()


def test_a_text_is_read_in_chunks_and_only_behind_what_is_known() -> None:
    runner = sometimes(1000)
    drafter = DraftModel(runner, LIMITS, VOCAB)
    sequence = request(range(70))
    assert drafter.guess([(sequence, ())])[0] == [None]
    assert drafter.guess([(sequence, ())])[0] == [None]
    [draft], _ = drafter.guess([(sequence, ())])
    assert draft is not None
    assert draft.token == letters(tuple(range(70)))
    assert draft.confidence > 0.9
    assert [batch.rows for batch in runner.batches] == [32, 32, 6]
    # Two drafts are read, and rejected.
    assert drafter.guess([(sequence, (1, 2))])[0][0] is not None
    sequence.tokens.append(3)
    [draft], _ = drafter.guess([(sequence, ())])
    assert draft is not None
    assert draft.token == letters((*range(70), 3))
    assert [batch.rows for batch in runner.batches[3:]] == [2, 1]


@pytest.mark.parametrize(("salt", "rows"), [(b"a", 1), (b"b", 21)])
def test_a_text_that_goes_on_from_one_that_ended_is_read_from_there(salt: bytes, rows: int) -> None:
    runner = sometimes(1000)
    drafter = DraftModel(runner, LIMITS, VOCAB)
    drafter.guess([(request(range(20), b"a"), ())])
    drafter.forget(1)
    [draft], _ = drafter.guess([(request(range(21), salt, 2), ())])
    assert draft is not None
    assert draft.token == letters(tuple(range(21)))
    assert runner.batches[-1].rows == rows
    drafter.check()


def test_no_drafts_beyond_the_context_or_the_vocabulary() -> None:
    drafter = DraftModel(Whole(lambda history: 200), LIMITS, 200)
    assert drafter.guess([(request(range(10)), ())])[0] == [None]
    small = Limits(context_size=8, max_pages=9, page_size=4, max_step_tokens=8, max_running=4)
    runner = sometimes(1000)
    assert DraftModel(runner, small, VOCAB).guess([(request(range(9)), ())]) == ([None], 0.0)
    assert runner.batches == []


def test_a_draft_model_that_fails_ends_drafts_and_no_request() -> None:
    runner = sometimes(1000)
    runner.fail_with = HearthError(Reason.OUT_OF_MEMORY, "no memory for pages")
    speculation = Speculation(True, DraftModel(runner, LIMITS, VOCAB))
    assert answers(speculation, [b"hello"], 30) == answers(None, [b"hello"], 30)
    assert len(runner.batches) == 1


def test_drafts_go_on_after_the_cluster_was_formed_again() -> None:
    wanted = answers(None, [b"hello"], 100)
    runner = sometimes(5)
    drafter = DraftModel(runner, LIMITS, VOCAB)
    speculation = Speculation(True, drafter)
    engine = Engine(
        FakeRunner(), ByteTokenizer(), LIMITS, speculation=speculation, pause_seconds=60.0
    )
    engine.start()
    box: queue.SimpleQueue[Event] = queue.SimpleQueue()
    lost = HearthError(Reason.WORKER_LOST, "worker nas:1 is lost")
    times = iter(range(3))

    def sink(event: Event) -> None:
        if next(times, None) is not None:  # two commands for the time after this step
            engine.suspend(lost)
            engine.resume(replace(LIMITS, max_pages=200 + len(runner.batches)))
        box.put(event)

    try:
        engine.submit(GenerateParams((BOS, *b"hello"), 100, Sampling(0.0), ignore_eos=True), sink)
        assert [answer(box)] == wanted
    finally:
        assert engine.stop(finish=False)
    assert next(times, None) is None
    # The draft model has its cache still: it reads nothing again.
    assert max(batch.rows for batch in runner.batches[1:]) <= 2
    drafter.check()


def test_damaged_rows_of_a_draft_model_give_no_draft_and_are_read_again() -> None:
    class Damaged(Whole):
        damaged = True

        def run(self, batch: Batch, candidates: Candidates = WHOLE_ROWS) -> StepOutput:
            output = super().run(batch, candidates)
            bad, self.damaged = {0: ""} if self.damaged else {}, False
            return StepOutput(output.logits, not_finite=bad)

    runner = Damaged(letters)
    drafter = DraftModel(runner, LIMITS, VOCAB)
    sequence = request(range(10))
    assert drafter.guess([(sequence, ())])[0] == [None]
    assert drafter.guess([(sequence, ())])[0] != [None]
    assert [batch.rows for batch in runner.batches] == [10, 10]
    drafter.check()


def test_a_draft_model_has_the_vocabulary_of_its_model() -> None:
    wanted = ClusterSettings(context=64, speculate="auto")
    with open_model("demo") as demo, open_model("random:tinyllama-1.1b") as other:
        with pytest.raises(
            HearthError, match=r"vocabularies differ.*32000 tokens and 2048"
        ) as info:
            with core(demo, wanted, draft=other):
                pass
        assert info.value.reason == Reason.BAD_SETTING
        for kind in ("off", "lookup"):
            with pytest.raises(HearthError, match="use auto or draft"):
                with core(demo, ClusterSettings(context=64, speculate=kind), draft=demo):
                    pass
        with pytest.raises(HearthError, match="give --draft MODEL"):
            with core(demo, ClusterSettings(context=64, speculate="draft")):
                pass


def test_a_recurrent_model_reads_an_edited_text_from_the_start() -> None:
    """Its state goes back behind drafts, and the last known token; not to the middle of a text."""
    runner = sometimes(1000)
    runner.recurrent = True
    drafter = DraftModel(runner, replace(LIMITS, stateful=True, most_drafts=16), VOCAB)
    for number, (text, guessed, begin) in enumerate(
        [
            (range(20), (), 0),
            (range(20), (1, 2, 3), 20),
            (range(20), (1, 4), 21),
            ([*range(20), 1], (), 20),
            # Of the text that ended the last known token may be another one.
            ([*range(20), 5, 6], (), 20),
            ([*range(18), 5, 6], (), 0),
        ]
    ):
        sequence = request(text, b"a", 1 if number < 3 else number)
        [draft], _ = drafter.guess([(sequence, guessed)])
        assert draft is not None
        assert draft.token == letters((*text, *guessed))
        assert runner.batches[-1].sequences[0].position == begin
        if number >= 2:
            drafter.forget(sequence.seq_id)
        drafter.check()


def test_a_recurrent_draft_models_states_are_the_roots_memory(tmp_path: Path) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3.5-moe")
    settings = ClusterSettings(context=64, speculate="auto")
    with open_model(str(path)) as model:
        drafts.check(model, model, model.tokenizer(), settings)
        own = drafts.settings_of(model, model, settings)
        share = drafts.share_of(model, own)
        blueprint = draw(model, own)
        [node] = blueprint.plan(()).nodes
        room = blueprint.expected_room()
        pages = room.pages * node.kv_page_bytes(model.spec, own.kv_type, own.page_size)
        states = room.sequences * node.state_bytes(model.spec)
        assert share.size_bytes == node.weight_bytes + pages + states
        assert states > 0


def test_a_draft_models_memory_is_the_roots() -> None:
    plain = ClusterSettings(context=64, speculate="auto")
    with open_model("demo") as model:
        share = drafts.with_draft(plain, model, model).draft
        assert share is not None
        # Of the same model the same bytes: what one needs does not do for both.
        plain = replace(plain, memory_limit=share.size_bytes + 1000)
        with core(model, plain) as running:
            assert running.cluster.lost is None
            node = running.cluster.status().nodes[0]
        assert share.size_bytes > node.weight_bytes > 0
        with pytest.raises(HearthError, match="use more nodes") as info:
            with core(model, plain, draft=model):
                pass
        assert info.value.reason == Reason.OUT_OF_MEMORY
        both = replace(plain, memory_limit=2 * share.size_bytes + 1000)
        with core(model, both, draft=model) as running:
            notes = running.cluster.status().notes
            assert [note for note in notes if note.startswith("draft model demo: ")]
