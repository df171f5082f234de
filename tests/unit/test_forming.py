"""A cluster's forming, as far as it needs no worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import RootMetrics
from hearth.converter import open_model
from hearth.root.cluster.forming import Forming
from hearth.root.cluster.links import WorkerLink
from hearth.root.planning import blueprint as blueprints
from hearth.root.settings import ClusterSettings
from hearth.root.status.board import Board
from hearth.v1 import worker_pb2

LOST = HearthError(Reason.WORKER_LOST, "the worker was lost", {"worker": "127.0.0.1:1"})


def forming_of(blueprint: blueprints.Blueprint) -> Forming:
    """With one worker, which is not there."""
    return Forming(
        blueprint,
        ("127.0.0.1:1",),
        worker_pb2.Lease(root_id="a", root_name="attic", epoch=1),
        None,
        Board(),
        RootMetrics(),
        lambda address, event: None,
        lambda link, error: None,
    )


@pytest.fixture
def forming() -> Iterator[Forming]:
    with open_model("demo") as model:
        yield forming_of(blueprints.draw(model, ClusterSettings()))


def on_describe(
    monkeypatch: pytest.MonkeyPatch, event: Callable[[WorkerLink], object], error: Exception
) -> None:
    """Has `event` happen while the worker is described, which then raises `error`."""

    def describe(link: WorkerLink, root_id: str = "") -> None:
        event(link)
        raise error

    monkeypatch.setattr(WorkerLink, "describe", describe)


@pytest.mark.parametrize("error", [LOST, ValueError("closed")], ids=["HearthError", "other"])
def test_an_interrupt_is_the_reason_whatever_error_follows(
    forming: Forming, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    on_describe(monkeypatch, lambda link: forming.interrupt(), error)
    with pytest.raises(HearthError) as raised:
        forming.run()
    assert raised.value.reason == Reason.SHUTTING_DOWN


def test_an_interrupt_closes_the_links(forming: Forming, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = WorkerLink.describe

    def interrupted(link: WorkerLink, root_id: str = "") -> worker_pb2.DescribeResponse:
        forming.interrupt()
        return describe(link, root_id)

    monkeypatch.setattr(WorkerLink, "describe", interrupted)
    with pytest.raises(HearthError) as raised:
        forming.run()
    assert raised.value.reason == Reason.SHUTTING_DOWN


@pytest.mark.parametrize(
    "error",
    [HearthError(Reason.CANCELLED, "loading was cancelled"), RuntimeError("closed")],
    ids=["HearthError", "other"],
)
def test_a_lost_worker_is_the_reason_of_errors_that_follow(
    forming: Forming, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def lose(link: WorkerLink) -> None:
        link.ended = LOST
        forming.stream_ended(link, LOST)

    on_describe(monkeypatch, lose, error)
    with pytest.raises(HearthError) as raised:
        forming.run()
    assert raised.value is LOST


def test_a_stream_that_the_root_ended_is_not_a_reason(
    forming: Forming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading was given up, and its streams end after it."""
    cancelled = HearthError(Reason.CANCELLED, "loading was cancelled")
    on_describe(monkeypatch, lambda link: forming.stream_ended(link, cancelled), LOST)
    with pytest.raises(HearthError) as raised:
        forming.run()
    assert raised.value is LOST
