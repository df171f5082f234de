"""The phases of a cluster: every transition that there is, and none besides."""

from __future__ import annotations

from typing import cast

import pytest

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.formation import Formation
from hearth.root.cluster.forming import Forming as Attempt
from hearth.root.cluster.state import Closed, Forming, Idle, Lost, State

ATTEMPT = cast("Attempt", object())
FORMATION = cast("Formation", object())
OTHER = cast("Formation", object())
FIRST = HearthError(Reason.WORKER_LOST, "the first")
SECOND = HearthError(Reason.DEADLINE, "the second")


def serving() -> State:
    state = State()
    state.begin(ATTEMPT)
    assert isinstance(state.phase, Forming)
    assert state.serve(FORMATION)
    return state


def test_before_the_first_attempt() -> None:
    state = State()
    assert isinstance(state.phase, Idle)
    assert state.lost is not None
    assert state.lost.reason == "CLUSTER_NOT_READY"
    assert state.dissolve(FIRST) is None


def test_an_attempt_that_fails_says_why_until_the_next() -> None:
    state = State()
    state.begin(ATTEMPT)
    state.failed(FIRST)
    assert state.phase == Idle(FIRST)
    state.begin(ATTEMPT)
    assert state.lost is FIRST
    state.failed(None)
    assert state.lost is FIRST


def test_the_first_error_of_a_formation_counts() -> None:
    state = serving()
    assert state.lost is None
    assert not state.lose(OTHER, SECOND)
    assert state.lose(FORMATION, FIRST)
    assert not state.lose(FORMATION, SECOND)
    assert state.phase == Lost(FIRST, FORMATION)
    assert state.dissolve(SECOND) is FORMATION
    assert state.phase == Idle(FIRST)
    assert state.dissolve(SECOND) is None


def test_one_that_serves_is_dissolved() -> None:
    state = serving()
    assert state.dissolve(SECOND) is FORMATION
    assert state.phase == Idle(SECOND)


def test_what_is_closed_stays_closed() -> None:
    state = serving()
    assert state.close(SECOND) is FORMATION
    assert state.close(FIRST) is None
    state.begin(ATTEMPT)
    assert not state.serve(FORMATION)
    state.failed(FIRST)
    assert state.phase == Closed(SECOND)
    assert state.lost is SECOND
    assert not state.lose(FORMATION, FIRST)


def test_one_that_is_lost_is_closed_with_its_error() -> None:
    state = serving()
    state.lose(FORMATION, FIRST)
    assert state.close(SECOND) is FORMATION
    assert state.phase == Closed(FIRST)


def test_a_transition_that_cannot_be_is_an_error() -> None:
    state = State()
    with pytest.raises(RuntimeError, match="cannot serve while it is Idle"):
        state.serve(FORMATION)
    with pytest.raises(RuntimeError, match="cannot fail an attempt while it is Idle"):
        state.failed(FIRST)
    state.begin(ATTEMPT)
    with pytest.raises(RuntimeError, match="cannot begin an attempt while it is Forming"):
        state.begin(ATTEMPT)
    state.serve(FORMATION)
    with pytest.raises(RuntimeError, match="cannot begin an attempt while it is Serving"):
        state.begin(ATTEMPT)
