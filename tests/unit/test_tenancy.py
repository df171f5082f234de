"""A worker's shard between two plans: kept for the root that asked for it, freed for any other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import pytest

from hearth.common.errors import HearthError
from hearth.v1 import common_pb2, worker_pb2
from hearth.worker.loading import LoadSession
from hearth.worker.tenancy import MOST_KEEP_SECONDS, Tenancy, lease_id


class Session:
    """As much of a LoadSession as a Tenancy needs."""

    held_bytes = 1000

    def __init__(self, begin: worker_pb2.LoadBegin) -> None:
        self.begin = begin
        self.sound = self.complete = True
        self.closed = False

    def matches(self, begin: worker_pb2.LoadBegin) -> bool:
        return begin.shard == self.begin.shard and begin.manifest == self.begin.manifest

    def close(self) -> None:
        self.closed = True


def begin(epoch: int, root: str = "a", pages: int = 8) -> worker_pb2.LoadBegin:
    lease = worker_pb2.Lease(root_id=root, root_name=root, epoch=epoch)
    return worker_pb2.LoadBegin(lease=lease, shard=common_pb2.ShardConfig(max_pages=pages))


@pytest.fixture
def tenancy() -> Tenancy:
    return Tenancy(grace_seconds=10.0)


def load(tenancy: Tenancy, first: worker_pb2.LoadBegin) -> Session:
    make = cast("Callable[[worker_pb2.LoadBegin], LoadSession]", Session)
    with tenancy.loading(first, make, lambda error: None) as session:
        return cast("Session", session)


def release(tenancy: Tenancy, epoch: int, keep_seconds: float, root: str = "a") -> None:
    tenancy.release(lease_id(begin(epoch, root).lease), keep_seconds)


def test_the_same_shard_goes_on_in_the_next_plan_of_its_root(tenancy: Tenancy) -> None:
    session = load(tenancy, begin(1))
    assert tenancy.kept_bytes() == 0  # the lease holds it
    release(tenancy, 1, 60)
    assert (tenancy.held_by(), tenancy.kept_bytes()) == (("", 0), 1000)
    assert load(tenancy, begin(2)) is session
    assert not session.closed
    assert session.begin.lease.epoch == 2
    assert (tenancy.held_by(), tenancy.kept_bytes()) == (("a", 2), 0)


def test_it_goes_on_without_a_release_too(tenancy: Tenancy) -> None:
    session = load(tenancy, begin(1))
    assert load(tenancy, begin(2)) is session


@pytest.mark.parametrize("other", [begin(2, "b"), begin(2, pages=9)], ids=["root", "shard"])
def test_any_other_plan_frees_it_first(tenancy: Tenancy, other: worker_pb2.LoadBegin) -> None:
    session = load(tenancy, begin(1))
    release(tenancy, 1, 60)

    def make(first: worker_pb2.LoadBegin) -> LoadSession:
        assert session.closed  # memory never holds two
        return cast("LoadSession", Session(first))

    with tenancy.loading(other, make, lambda error: None) as found:
        assert cast("Session", found) is not session
    assert tenancy.kept_bytes() == 0


def test_what_is_not_asked_for_not_sound_or_too_old_is_freed(tenancy: Tenancy) -> None:
    session = load(tenancy, begin(1))
    release(tenancy, 1, 0)
    assert session.closed
    session = load(tenancy, begin(2))
    session.sound = False  # incomplete, or its GPU is lost
    release(tenancy, 2, 60)
    assert session.closed
    session = load(tenancy, begin(3))
    release(tenancy, 3, 0.02)
    # By itself: nobody calls the worker meanwhile.
    deadline = time.monotonic() + 30
    while not session.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert session.closed
    assert tenancy.kept_bytes() == 0


def test_a_worker_that_shuts_down_keeps_nothing(tenancy: Tenancy) -> None:
    session = load(tenancy, begin(1))
    release(tenancy, 1, 60)
    tenancy.close()
    assert session.closed
    assert tenancy.kept_bytes() == 0


def test_nothing_is_kept_for_longer_than_the_most(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = load(tenancy, begin(1))
    release(tenancy, 1, 1e9)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + MOST_KEEP_SECONDS + 1)
    assert tenancy.kept_bytes() == 0
    assert session.closed


def test_it_is_kept_once_its_step_has_ended(tenancy: Tenancy) -> None:
    session = load(tenancy, begin(1))
    ends: list[HearthError] = []
    with tenancy.forwarding(lease_id(begin(1).lease), ends.append):
        release(tenancy, 1, 60)
        assert len(ends) == 1
        assert tenancy.ending(0)
        assert tenancy.kept_bytes() == 0
    assert not session.closed
    assert (tenancy.ending(0), tenancy.kept_bytes()) == (False, 1000)
    assert load(tenancy, begin(2)) is session
