"""A cluster's forming, as far as it needs no worker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import RootMetrics
from hearth.converter import open_model
from hearth.root.cluster.forming import Forming
from hearth.root.planning import blueprint as blueprints
from hearth.root.planning.layout import Layout
from hearth.root.settings import ClusterSettings
from hearth.root.status.board import Board
from hearth.v1 import worker_pb2


def test_a_plan_of_several_stages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model("demo")
    blueprint = blueprints.draw(model, ClusterSettings())
    monkeypatch.setattr(blueprints, "layout_of", lambda parallel, nodes: Layout((1,) * nodes))
    with pytest.raises(HearthError, match="a plan of 2 stages: this version runs one") as error:
        Forming(
            blueprint,
            ("127.0.0.1:1",),
            worker_pb2.Lease(root_id="a", root_name="attic", epoch=1),
            None,
            Board(),
            RootMetrics(),
            lambda address, event: None,
            lambda link, error: None,
        )
    assert error.value.reason == Reason.INVALID_ARGUMENT
    model.close()


@pytest.mark.parametrize("parallel", ["pipeline", "2x1", "diagonal"])
def test_a_layout_that_does_not_run_is_an_error_before_anything_is_dialled(parallel: str) -> None:
    with open_model("demo") as model:
        settings = replace(ClusterSettings(), parallel=parallel)
        with pytest.raises(HearthError, match=f"--parallel '?{parallel}'?: .*use auto or tensor"):
            blueprints.draw(model, settings)
