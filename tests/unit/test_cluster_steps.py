"""A step of a cluster that fails in a way that nobody expects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from hearth.common.errors import HearthError, Reason
from hearth.converter import Model, open_model
from hearth.root.cluster.cluster import Cluster
from hearth.root.cluster.formation import Formation
from hearth.root.cluster.forming import Forming
from hearth.root.cluster.reports import Reports
from hearth.root.scheduling.batch import Batch
from hearth.root.settings import ClusterSettings
from hearth.v1 import worker_pb2


@pytest.fixture
def model() -> Iterator[Model]:
    with open_model("demo") as model:
        yield model


def test_an_unexpected_error_of_a_step_ends_the_formation(model: Model) -> None:
    """The workers have the step: the next one would blame a healthy worker."""
    cluster = Cluster(model, ClusterSettings())
    formation = BrokenFormation()
    cluster._state.begin(cast("Forming", None))
    cluster._state.serve(cast("Formation", formation))
    for _ in range(2):
        with pytest.raises(HearthError, match="a step failed in the root: TypeError: no") as error:
            cluster.submit(cast("Batch", None)).result()
        assert error.value.reason == Reason.INTERNAL
        assert error.value.metadata == {}
    assert formation.steps == 1
    assert formation.failure is cluster.lost
    cluster.close()


def test_an_unexpected_error_of_a_step_without_workers_is_only_the_step_s(model: Model) -> None:
    cluster = Cluster(model, ClusterSettings())
    formation = BrokenFormation()
    formation.links = ()
    cluster._state.begin(cast("Forming", None))
    cluster._state.serve(cast("Formation", formation))
    with pytest.raises(TypeError, match="no"):
        cluster.submit(cast("Batch", None)).result()
    assert cluster.lost is None
    cluster.close()


class BrokenFormation:
    """Raises an error that nobody expects, after the workers got the step."""

    def __init__(self) -> None:
        self.links: tuple[str, ...] = ("a worker",)
        self.reports = Reports(())
        self.pipeline = self.waiting_since = self.oldest = None
        self.steps = 0
        self.failure: HearthError | None = None

    def step(self, batch: Batch, candidates: object, hidden: bool) -> None:
        self.steps += 1
        raise TypeError("no such argument")

    def fail(self, error: HearthError) -> None:
        self.failure = error

    def release(self, lease: worker_pb2.Lease, keep_seconds: int = 0) -> None:
        pass
