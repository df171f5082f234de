"""The story of a real formation that fails: recorded by the root, replayed from the file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from harness import ServiceProcess, served

from hearth.common.channels import PROTOCOL_VERSION
from hearth.common.errors import Reason
from hearth.converter import open_model
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine.engine import Engine
from hearth.root.membership.decisions import Form
from hearth.root.membership.events import FormFailed
from hearth.root.membership.peers import PeerState
from hearth.root.membership.replay import replay
from hearth.root.settings import ClusterSettings, Joining
from hearth.root.supervisor import Supervisor
from hearth.v1 import common_pb2, worker_pb2, worker_pb2_grpc

ROOM = 1 << 30


class Fragile(worker_pb2_grpc.WorkerServiceServicer):
    """Describes itself, is lost when its weights arrive, and is not there any more after."""

    def __init__(self) -> None:
        self._lost = threading.Event()

    def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> worker_pb2.DescribeResponse:
        if self._lost.is_set():
            context.abort(grpc.StatusCode.UNAVAILABLE, "no power")
        node = common_pb2.NodeInfo(
            name="fragile", protocol_version=PROTOCOL_VERSION, memory_available_bytes=ROOM
        )
        return worker_pb2.DescribeResponse(node=node, instance="f1", mesh_port=9)

    def LoadWeights(  # noqa: N802
        self, requests: Iterator[worker_pb2.LoadWeightsRequest], context: grpc.ServicerContext
    ) -> Iterator[worker_pb2.LoadWeightsResponse]:
        next(requests)
        self._lost.set()
        context.abort(grpc.StatusCode.UNAVAILABLE, "the power failed")
        yield worker_pb2.LoadWeightsResponse()

    def Release(  # noqa: N802
        self, request: worker_pb2.ReleaseRequest, context: grpc.ServicerContext
    ) -> worker_pb2.ReleaseResponse:
        return worker_pb2.ReleaseResponse()


class Busy(worker_pb2_grpc.WorkerServiceServicer):
    """Another root's."""

    def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> worker_pb2.DescribeResponse:
        node = common_pb2.NodeInfo(name="busy", protocol_version=PROTOCOL_VERSION)
        return worker_pb2.DescribeResponse(node=node, instance="b1", held_by="another root")


def test_a_formation_that_fails_is_recorded_and_replayed(
    start_worker: Callable[..., ServiceProcess], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "story.jsonl"
    steady = start_worker("--name", "steady").address
    caplog.set_level(logging.INFO)
    with (
        served(Fragile()) as fragile,  # type: ignore[abstract]
        served(Busy()) as busy,  # type: ignore[abstract]
        open_model("demo", None) as model,
    ):
        settings = ClusterSettings(workers=(steady, fragile, busy), threads=1, context=64)
        cluster = Cluster(model, settings)
        engine = Engine(cluster, model.tokenizer(), cluster.expected_limits())
        joining = Joining(min_workers=1, wait_seconds=1.0, story=str(file))
        supervisor = Supervisor(cluster, engine, joining)
        try:
            supervisor.form_first()
        finally:
            supervisor.stop()
            engine.stop(finish=False)
            cluster.close()
    assert f"(its story: {file})" in caplog.text

    (membership,) = replay(file.read_text().splitlines())
    entries = membership.story()
    formed = [entry.result.workers for entry in entries if isinstance(entry.result, Form)]
    assert formed == [(steady, fragile), (steady,)]
    (failed,) = [entry.event for entry in entries if isinstance(entry.event, FormFailed)]
    assert (failed.address, failed.reason) == (fragile, Reason.UNREACHABLE)
    assert "the power failed" in failed.problem
    assert {peer.address: peer.state for peer in membership.peers} == {
        steady: PeerState.IN,
        fragile: PeerState.UNREACHABLE,
        busy: PeerState.REFUSED,
    }
