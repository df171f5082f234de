"""The holder of a worker: every order of events that roots can cause."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.common.errors import HearthError, Reason
from hearth.worker.lease import LeaseId, LeaseState

A1 = LeaseId("a", "attic", 1)
A2 = LeaseId("a", "attic", 2)
B1 = LeaseId("b", "barn", 1)


def reason(error: pytest.ExceptionInfo[HearthError]) -> str:
    return error.value.reason


def test_another_root_is_refused_and_told_who_holds() -> None:
    state = LeaseState(5)
    assert state.take(A1, 0)
    with pytest.raises(HearthError, match="attic") as error:
        state.take(B1, 4.9)
    assert reason(error) == Reason.WORKER_BUSY
    assert error.value.metadata["heldBy"] == "attic"


def test_lease_without_a_stream_ends_after_the_grace_period() -> None:
    state = LeaseState(5)
    state.take(A1, 0)
    state.stream_opened(A1)
    with pytest.raises(HearthError):
        state.take(B1, 1000)  # an open stream keeps the lease for ever
    state.stream_closed(A1, 1000)
    with pytest.raises(HearthError):
        state.take(B1, 1004.9)
    assert state.take(B1, 1005)
    assert state.holder == B1


def test_a_successor_stream_keeps_the_lease() -> None:
    state = LeaseState(5)
    state.take(A1, 0)
    state.stream_opened(A1)
    state.stream_closed(A1, 10)
    assert not state.take(A1, 14)
    state.stream_opened(A1)
    assert not state.expire(100)
    assert state.holder == A1


def test_higher_epoch_replaces_at_once_and_lower_is_stale() -> None:
    state = LeaseState(5)
    state.take(A1, 0)
    state.stream_opened(A1)
    assert state.take(A2, 1)
    for act in (state.take, state.check):
        with pytest.raises(HearthError) as error:
            act(A1, 2)
        assert reason(error) == Reason.STALE_EPOCH
    # The old plan's stream ends late: it does not count for the new plan.
    state.stream_opened(A2)
    state.stream_closed(A1, 3)
    assert not state.expire(1000)


def test_check_wants_the_loaded_epoch() -> None:
    state = LeaseState(5)
    with pytest.raises(HearthError) as error:
        state.check(A1, 0)
    assert reason(error) == Reason.NOT_LOADED
    state.take(A1, 0)
    state.check(A1, 1)
    with pytest.raises(HearthError) as error:
        state.check(A2, 1)
    assert reason(error) == Reason.NOT_LOADED
    with pytest.raises(HearthError) as error:
        state.check(B1, 1)
    assert reason(error) == Reason.WORKER_BUSY


@pytest.mark.parametrize(
    "lease", [LeaseId("", "x", 1), LeaseId("a", "x", 0), LeaseId("a" * 300, "x", 1)]
)
def test_leases_that_cannot_be(lease: LeaseId) -> None:
    with pytest.raises(HearthError) as error:
        LeaseState(5).take(lease, 0)
    assert reason(error) == Reason.INVALID_ARGUMENT


_events = st.lists(
    st.tuples(
        st.sampled_from(["take", "open", "close", "end", "expire"]),
        st.sampled_from(["a", "b"]),
        st.integers(1, 3),
        st.floats(0, 8),
    ),
    max_size=40,
)


@given(_events)
def test_never_two_holders_and_never_a_younger_epoch_replaced(
    events: list[tuple[str, str, int, float]],
) -> None:
    state = LeaseState(5)
    now = 0.0
    for what, root, epoch, passed in events:
        now += passed
        before = state.holder
        lease = LeaseId(root, root, epoch)
        if what == "take":
            try:
                state.take(lease, now)
            except HearthError:
                assert state.holder in (before, None)
                assert state.holder is not None, "refused by a free worker"
            else:
                assert state.holder == lease
        elif what == "open":
            state.stream_opened(lease)
        elif what == "close":
            state.stream_closed(lease, now)
        elif what == "end":
            state.end()
        elif what == "expire":
            state.expire(now)
        after = state.holder
        if before and after and before.root_id == after.root_id and what != "take":
            assert after == before
