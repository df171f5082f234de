"""Page tables that are sent as changes: what arrives is what was meant, or an error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.common.errors import HearthError
from hearth.root.scheduling.batch import Limits, Request, SequenceStep
from hearth.root.scheduling.scheduler import Scheduler
from hearth.worker.page_tables import PageTables


def test_a_table_grows_and_is_cut() -> None:
    tables = PageTables(max_sequences=2, max_pages=100, page_size=4)
    assert tables.change(1, 0, [5, 6]).tolist() == [5, 6]
    assert tables.change(1, 2, []).tolist() == [5, 6]
    assert tables.change(1, 2, range(10, 60)).tolist() == [5, 6, *range(10, 60)]
    table = tables.change(1, 1, [7])
    assert (table.tolist(), table.dtype) == ([5, 7], np.uint32)
    assert tables.change(2, 0, [9]).tolist() == [9]
    tables.forget(False, [1])
    assert tables.change(1, 0, [8]).tolist() == [8]
    tables.forget(True, [])
    assert len(tables) == 0


def test_a_sequence_keeps_its_slot_and_the_next_takes_the_lowest() -> None:
    tables = PageTables(max_sequences=3, max_pages=8, page_size=4)
    for seq_id in (7, 8, 9):
        tables.change(seq_id, 0, [])
    tables.change(8, 0, [5])
    assert [tables.slot(seq_id) for seq_id in (7, 8, 9)] == [0, 1, 2]
    tables.forget(False, [9, 7])
    tables.change(4, 0, [])
    tables.change(3, 0, [])
    assert [tables.slot(seq_id) for seq_id in (4, 8, 3)] == [0, 1, 2]
    tables.forget(True, [])
    tables.change(8, 0, [])
    assert tables.slot(8) == 0


@pytest.mark.parametrize(
    ("seq_id", "kept", "new", "message"),
    [
        (1, 3, [], "sequence 1 keeps 3 pages of a table of 2"),
        (2, 1, [], "sequence 2 keeps 1 pages of a table of 0"),
        (1, 2, [0] * 7, "sequence 1 has 9 pages, the plan allows 8"),
        (1, 2, [3, 8], "sequence 1 has page 8 of a KV cache of 8"),
        (3, 0, [3], "sequence 3 needs page table 3, the plan allows 2"),
    ],
)
def test_changes_that_cannot_be(seq_id: int, kept: int, new: list[int], message: str) -> None:
    tables = PageTables(max_sequences=2, max_pages=8, page_size=4)
    tables.change(1, 0, [5, 6])
    tables.change(2, 0, [])
    with pytest.raises(HearthError, match=message) as error:
        tables.change(seq_id, kept, new)
    assert error.value.reason == "BAD_STEP"


def test_only_a_sequence_with_a_table_ends() -> None:
    tables = PageTables(max_sequences=2, max_pages=8, page_size=4)
    tables.change(1, 0, [5])
    for reset, ended in ((False, [2]), (False, [1, 1]), (True, [1])):
        with pytest.raises(HearthError, match="ended but has no page table") as error:
            tables.forget(reset, ended)
        assert error.value.reason == "BAD_STEP"


def advance(tables: PageTables, step: SequenceStep) -> None:
    tables.step(step.seq_id, step.position, len(step.tokens), step.kept_pages, step.new_pages)


def new_tables(limits: Limits) -> PageTables:
    return PageTables(limits.max_running, limits.max_pages, limits.page_size)


def test_a_sequence_begins_after_full_pages_of_others() -> None:
    tables = PageTables(max_sequences=3, max_pages=8, page_size=4)
    with pytest.raises(HearthError, match="begins after page 5, which was not written") as error:
        tables.step(1, 4, 2, 0, [5, 6])
    assert error.value.reason == "BAD_STEP"
    tables = PageTables(max_sequences=3, max_pages=8, page_size=4)
    tables.step(1, 0, 3, 0, [5])
    tables.step(1, 3, 4, 1, [6])  # page 5 is full, page 6 is not
    assert tables.step(2, 4, 1, 0, [5, 7]).tolist() == [5, 7]
    with pytest.raises(HearthError, match="page 6, which was not written"):
        tables.step(3, 8, 1, 0, [5, 6, 0])
    with pytest.raises(HearthError, match="position 2, within a page of 4"):
        tables.step(3, 2, 1, 0, [5])


@pytest.mark.parametrize("how", ["reset", "release", "rewrite"])
def test_pages_lose_their_content(how: str) -> None:
    tables = PageTables(max_sequences=3, max_pages=8, page_size=4)
    tables.step(1, 0, 8, 0, [5, 6])
    if how == "reset":
        tables.forget(True, [])
    elif how == "release":
        tables.release(6)
    else:
        tables.step(2, 0, 1, 0, [6])
    with pytest.raises(HearthError, match="which was not written"):
        tables.step(3, 8, 1, 0, [5, 6, 7])


@given(prompt=st.integers(1, 40), steps=st.integers(1, 8))
def test_a_batch_for_an_earlier_plan_is_refused_by_a_new_one(prompt: int, steps: int) -> None:
    """So a batch needs no epoch: a row that goes on keeps pages, which new tables do not have."""
    limits = Limits(context_size=100, max_pages=50, page_size=4, max_step_tokens=16)
    scheduler = Scheduler(limits)
    scheduler.submit(Request(1, tuple(range(prompt))))
    tables = new_tables(limits)
    for _ in range(steps):
        batch = scheduler.schedule()
        assert batch is not None
        (step,) = batch.sequences
        fresh = new_tables(limits)
        fresh.forget(batch.reset, ())
        if step.position == 0:
            advance(fresh, step)
        else:
            with pytest.raises(HearthError, match="of a table of 0") as error:
                advance(fresh, step)
            assert error.value.reason == "BAD_STEP"
        tables.forget(batch.reset, batch.ended)
        advance(tables, step)
        scheduler.step_finished(batch, {1: [7]} if batch.output_rows else {})


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(0, 40),
        st.lists(st.integers(0, 60), max_size=30),
        st.sampled_from(["", "", "", "ended", "reset"]),
    ),
    max_size=30,
)


@given(CHANGES)
def test_any_history(changes: list[tuple[int, int, list[int], str]]) -> None:
    tables = PageTables(max_sequences=4, max_pages=50, page_size=4)
    model: dict[int, list[int]] = {}
    for seq_id, kept, new, event in changes:
        if event == "ended" and seq_id in model:
            tables.forget(False, [seq_id])
            del model[seq_id]
        elif event == "reset":
            tables.forget(True, [])
            model.clear()
        held = model.get(seq_id, [])
        fits = (
            kept <= len(held)
            and kept + len(new) <= 50
            and max(new, default=0) < 50
            and (seq_id in model or len(model) < 4)
        )
        try:
            table = tables.change(seq_id, kept, new)
        except HearthError as error:
            assert not fits
            assert error.reason == "BAD_STEP"
            continue
        assert fits
        model[seq_id] = held[:kept] + new
        assert table.tolist() == model[seq_id]
        assert len(tables) == len(model)
        slots = [tables.slot(each) for each in model]
        assert len(set(slots)) == len(slots)
        assert all(0 <= slot < 4 for slot in slots)
