"""Parts of a pipeline without nodes: places in the mesh, steps in flight, blame of values."""

from __future__ import annotations

import threading
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.common.candidates import WHOLE_ROWS
from hearth.common.errors import HearthError, Reason
from hearth.common.mesh_place import MeshPlace, place_of
from hearth.root.cluster.finite import LOGITS, of_stages
from hearth.root.cluster.pipeline import Pipeline
from hearth.root.cluster.stepping import StepRun
from hearth.root.scheduling.batch import Batch, StepOutput

LOST = HearthError(Reason.WORKER_LOST, "a worker was lost", {"worker": "10.0.0.1:7717"})


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple))
def test_every_rank_gets_activations_from_one_other(stage_ranks: tuple[int, ...]) -> None:
    places = [
        MeshPlace(stage_ranks, stage, rank)
        for stage, ranks in enumerate(stage_ranks)
        for rank in range(ranks)
    ]
    assert [place.own for place in places] == list(range(sum(stage_ranks)))
    for place in places:
        # Both ends of a connection know it, and it is within a stage or to a neighbouring one.
        for peer in place.peers:
            assert place.own in places[peer].peers
            assert abs(places[peer].stage - place.stage) <= 1
        assert set(place.mates) - {place.own} <= place.peers
        for peer in place.behind:
            assert places[peer].before == place.own
        assert (place.before is None) == (place.stage == 0)
    receivers = [peer for place in places for peer in place.behind]
    assert sorted(receivers) == list(range(stage_ranks[0], len(places)))


@pytest.mark.parametrize("stage_ranks", [(1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 2)])
def test_ranks_that_contradict_the_placement(stage_ranks: tuple[int, ...]) -> None:
    """Of rank 0 of 1 in stage 1 of 3."""
    if stage_ranks == (2, 1, 1):
        assert place_of(stage_ranks, 1, 3, 0, 1).own == 2
        return
    with pytest.raises(HearthError, match="a mesh of stages of") as error:
        place_of(stage_ranks, 1, 3, 0, 1)
    assert error.value.reason == Reason.INVALID_ARGUMENT


def test_one_stage_needs_no_numbers() -> None:
    assert place_of((), 0, 1, 2, 4) == MeshPlace((4,), 0, 2)


def test_the_first_stage_that_saw_a_value_is_its_source() -> None:
    alone, other = {0: 3}, {0: 0, 1: LOGITS}
    assert of_stages([[{}], [alone], [other]]) == {0: (1, 0), 1: (2, 0)}
    # In the root's stage nothing is known of the input; in a stage of ranks all may have it.
    assert of_stages([[alone], [other]]) == {0: None, 1: (1, 0)}
    assert of_stages([[{}], [{5: 2}, {5: 2}]]) == {5: None}
    assert of_stages([[{}], [{5: 2}, {5: 1}]]) == {5: (1, 1)}


class Legs:
    """Two legs, each of which waits for permission, and a pipeline of them."""

    def __init__(self) -> None:
        self.permits = [threading.Semaphore(0), threading.Semaphore(0)]
        self.error: Exception | None = None
        self.order: list[tuple[int, int]] = []
        self.pipeline = Pipeline(
            [lambda run, data: self._leg(0, run, data), lambda run, data: self._leg(1, run, data)],
            lambda run: StepOutput(cast("None", run.step_id)),  # type: ignore[arg-type]
            lambda error: error,
        )

    def _leg(self, number: int, run: StepRun, data: bytes) -> bytes:
        assert self.permits[number].acquire(timeout=30)
        if self.error is not None:
            raise self.error
        self.order.append((number, run.step_id))
        return data + b"%d" % number

    def begin(self, number: int) -> StepRun:
        run = StepRun(number, cast("Batch", None), WHOLE_ROWS, hidden=False)
        self.pipeline.begin(run)
        self.pipeline.push(run, b"")
        return run

    def close(self) -> None:
        for permit in self.permits:
            permit.release(100)
        self.pipeline.close()


def test_steps_follow_each_other_through_the_legs() -> None:
    legs = Legs()
    assert legs.pipeline.waiting_since is None
    runs = [legs.begin(number) for number in (1, 2, 3)]
    assert legs.pipeline.oldest is not None
    legs.permits[0].release(3)
    legs.permits[1].release(1)
    assert runs[0].future.result(30).logits == 1
    assert not runs[1].future.done()
    legs.permits[1].release(2)
    assert runs[2].future.result(30).logits == 3
    for leg in (0, 1):
        assert [step for number, step in legs.order if number == leg] == [1, 2, 3]
    assert legs.pipeline.waiting_since is None
    legs.close()


def test_a_failure_ends_the_steps_in_flight() -> None:
    legs = Legs()
    runs = [legs.begin(number) for number in (1, 2)]
    legs.pipeline.fail(LOST)
    for run in runs:
        with pytest.raises(HearthError, match="a worker was lost"):
            run.future.result(30)
    # What the legs find afterwards counts no more.
    legs.error = ValueError("too late")
    legs.close()
    assert all(isinstance(run.future.exception(), HearthError) for run in runs)


def test_an_error_of_a_leg_is_its_step_s() -> None:
    legs = Legs()
    run = legs.begin(1)
    legs.error = ValueError("broken")
    legs.permits[0].release()
    with pytest.raises(ValueError, match="broken"):
        run.future.result(30)
    legs.close()
