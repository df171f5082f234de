"""Links to workers that are not there: what they do with errors and with closed channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.formation import Formation
from hearth.root.cluster.lanes import Lanes
from hearth.root.cluster.links import WorkerLink
from hearth.root.cluster.reports import Reports
from hearth.root.planning.plan import NodePlan, Plan, Stage
from hearth.v1 import common_pb2, worker_pb2
from hearth.worker.shard import NodeShard, page_tables

# Nothing listens there, and nothing is dialled before a call.
ADDRESSES = ("127.0.0.1:1", "127.0.0.1:2")
LEASE = worker_pb2.Lease(root_id="a", epoch=1)


class IdleShard:
    """As much of a shard as a formation needs that runs no step."""

    config = common_pb2.ShardConfig(max_step_tokens=1, max_pages=1)
    tables = page_tables(config)


@pytest.fixture
def links() -> Iterator[list[WorkerLink]]:
    links = [WorkerLink(address) for address in ADDRESSES]
    yield links
    for link in links:
        link.close()


def formation(links: list[WorkerLink]) -> Formation:
    shard = cast("NodeShard", IdleShard())
    nodes = cast("tuple[NodePlan, ...]", (None,) * (1 + len(links)))
    plan = Plan((Stage((0, 1), nodes),), ())
    return Formation(plan, shard, links, Lanes(None, relayed=True), "f32", Reports(()))


def failure_of(link: WorkerLink) -> HearthError:
    """The error with which the link's stream ends, once `fail` was called."""
    with pytest.raises(HearthError) as error:
        link.open(LEASE, lambda error: None)
    return error.value


def test_an_error_that_names_no_worker_blames_none(links: list[WorkerLink]) -> None:
    """The formation's error is shared by its links, and goes on to the board."""
    error = HearthError(Reason.DEADLINE, "a step took longer than 1 s", {"stage": 0})
    formation(links).fail(error)
    assert error.metadata == {"stage": "0"}


def test_a_worker_that_is_not_there_is_said_once(links: list[WorkerLink]) -> None:
    with pytest.raises(HearthError) as error:
        links[0].describe()
    assert error.value.reason == Reason.WORKER_UNREACHABLE
    assert error.value.message.startswith(f"worker {ADDRESSES[0]} cannot be reached (")
    assert error.value.message.count("reached") == 1
    assert "is `hearth worker` running there" in error.value.message


def test_each_link_raises_the_error_with_its_own_worker(links: list[WorkerLink]) -> None:
    error = HearthError(Reason.DEADLINE, "a step took longer than 1 s")
    formation(links).fail(error)
    for link in links:
        raised = failure_of(link)
        assert (raised.reason, raised.message) == (error.reason, error.message)
        assert raised.metadata == {"worker": link.address}


def test_the_worker_that_an_error_names_is_kept(links: list[WorkerLink]) -> None:
    error = HearthError(Reason.WORKER_LOST, "lost", {"worker": ADDRESSES[0]})
    formation(links).fail(error)
    assert failure_of(links[1]).metadata == {"worker": ADDRESSES[0]}


@pytest.mark.parametrize(
    ("reason", "released"),
    [(Reason.WORKER_LOST, [ADDRESSES[1]]), (Reason.PEER_LOST, list(ADDRESSES))],
)
def test_the_lease_of_a_lost_worker_is_not_released(
    links: list[WorkerLink],
    monkeypatch: pytest.MonkeyPatch,
    reason: Reason,
    released: list[str],
) -> None:
    """With PEER_LOST the root reaches both workers; other errors use `peer` for the lost one."""
    calls: list[str] = []
    monkeypatch.setattr(WorkerLink, "release", lambda link, *rest: calls.append(link.address))
    facts = {"worker": ADDRESSES[0], "peer": ADDRESSES[1]}
    formed = formation(links)
    formed.fail(HearthError(reason, "lost", facts))
    formed.release(LEASE)
    assert sorted(calls) == released


@pytest.mark.parametrize(
    "call",
    [
        lambda link: link.describe(),
        lambda link: link.load(worker_pb2.LoadBegin(), never_read, lambda event: None),
        lambda link: link.open(LEASE, lambda error: None),
    ],
    ids=["describe", "load", "open"],
)
def test_a_call_on_a_closed_link_is_cancelled(call: Callable[[WorkerLink], object]) -> None:
    link = WorkerLink(ADDRESSES[0])
    link.close()
    with pytest.raises(HearthError, match=r"the connection to worker .* was closed") as error:
        call(link)
    assert error.value.reason == Reason.CANCELLED
    assert error.value.metadata == {"worker": ADDRESSES[0]}


def test_an_error_of_reading_is_not_taken_for_a_closed_link(
    links: list[WorkerLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ValueError("cannot reshape")

    monkeypatch.setattr("hearth.root.cluster.links.stream_weights", broken)
    with pytest.raises(ValueError, match="cannot reshape"):
        links[0].load(worker_pb2.LoadBegin(), never_read, lambda event: None)


def test_an_earlier_failure_ends_a_load(links: list[WorkerLink]) -> None:
    links[0].fail(HearthError(Reason.CANCELLED, "loading was cancelled"))
    with pytest.raises(HearthError, match="loading was cancelled"):
        links[0].load(worker_pb2.LoadBegin(), never_read, lambda event: None)


def never_read(index: int, begin: int, end: int) -> npt.NDArray[np.uint8]:
    raise AssertionError("nothing was asked for")
