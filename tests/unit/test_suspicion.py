"""A worker, or the model: who is at fault where activations are not finite."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hearth.root.cluster.finite import LOGITS, sources
from hearth.root.cluster.suspicion import Suspicion
from hearth.root.scheduling.batch import Batch, SequenceStep


def batch(*sequences: tuple[int, int]) -> Batch:
    """Of (sequence, rows)."""
    parts = tuple(SequenceStep(n, (1,) * rows, 0, 0, (), 1) for n, rows in sequences)
    rows = sum(rows for _, rows in sequences)
    return Batch(parts, (1,) * rows, (rows - 1,), 0)


def test_the_rank_that_sees_it_first_is_the_source() -> None:
    assert sources([{4: 3}, {4: 2}, {4: 3}]) == {4: 1}
    assert sources([{}, {0: LOGITS}]) == {0: 1}
    assert sources([{1: 5}, {1: 6, 2: 0}]) == {1: 0, 2: 1}


def test_what_several_see_at_once_comes_from_none() -> None:
    assert sources([{4: 2}, {4: 2}, {4: 2}]) == {4: None}
    assert sources([{4: 2}, {4: 3}, {4: 2}]) == {4: None}
    assert sources([{4: 2}]) == {4: None}  # alone
    assert sources([{}, {}]) == {}


@given(st.lists(st.dictionaries(st.integers(0, 3), st.integers(0, 9)), max_size=4))
def test_every_row_that_was_seen_has_a_source_that_saw_it(seen: list[dict[int, int]]) -> None:
    found = sources(seen)
    assert found.keys() == {row for rank in seen for row in rank}
    for row, rank in found.items():
        if rank is not None:
            assert all(
                seen[rank][row] < other[row]
                for n, other in enumerate(seen)
                if n != rank
                if row in other
            )


def test_a_worker_is_suspected_once_for_a_sequence() -> None:
    suspicion = Suspicion()
    error = suspicion.judge(batch((7, 2), (8, 1)), {2: "a:1"})
    assert error is not None
    assert (error.reason, error.metadata) == ("WORKER_UNFIT", {"worker": "a:1"})
    assert suspicion.cleared() == []
    # On another plan it comes from another worker: it is the model.
    assert suspicion.judge(batch((8, 3)), {0: "b:1"}) is None
    assert suspicion.cleared() == ["a:1"]
    assert suspicion.cleared() == []


def test_no_worker_is_suspected_while_the_model_is() -> None:
    now = 0.0
    suspicion = Suspicion(lambda: now)
    suspicion.judge(batch((1, 1)), {0: "a:1"})
    suspicion.judge(batch((1, 1)), {0: ""})
    for seq_id in range(2, 9):
        assert suspicion.judge(batch((seq_id, 1)), {0: "b:1"}) is None
    now = 601.0
    assert suspicion.judge(batch((9, 1)), {0: "b:1"}) is not None


def test_what_comes_from_no_worker_ends_its_sequence() -> None:
    suspicion = Suspicion()
    assert suspicion.judge(batch((1, 1)), {0: ""}) is None
    assert suspicion.judge(batch((1, 1)), {5: "a:1"}) is None  # not a row of the batch
    assert suspicion.cleared() == []


def test_rows_of_drafts_prove_nothing() -> None:
    drafting = SequenceStep(1, (1, 8, 9), 0, 0, (), 3)
    step = Batch((drafting, SequenceStep(2, (1,), 0, 0, (), 1)), (1, 8, 9, 1), (0, 1, 2, 3), 4)
    suspicion = Suspicion()
    assert suspicion.judge(step, {1: "a:1", 2: "a:1"}) is None
    for row in (0, 3):
        error = Suspicion().judge(step, {row: "a:1"})
        assert error is not None
        assert error.metadata == {"worker": "a:1"}


def test_what_is_remembered_is_bounded() -> None:
    suspicion = Suspicion()
    for seq_id in range(5000):
        suspicion.judge(batch((seq_id, 1)), {0: "a:1"})
    assert len(suspicion._suspects) == 1024
