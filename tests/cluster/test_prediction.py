"""Workers that measure themselves, and a cluster that states what it expects."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import perplexity
import pytest

from hearth.common.channels import PROTOCOL_VERSION, dial
from hearth.common.speeds import Speeds, speeds_message
from hearth.root.cluster import measuring
from hearth.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from hearth.worker import server as worker_server
from hearth.worker.server import WorkerServer

KNOWN = Speeds(20e9, 100e9, 60e9, 1e-5, 1e9)


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two workers in this process, with known speeds."""

    def known(*_: object, may_measure: bool = True, **__: object) -> Speeds | None:
        return KNOWN if may_measure else None

    monkeypatch.setattr(worker_server, "speeds_here", known)
    monkeypatch.setattr(measuring, "speeds_here", known)
    servers = [WorkerServer("127.0.0.1:0", threads=1, name=f"node{n}") for n in (1, 2)]
    yield [f"127.0.0.1:{server.start()}" for server in servers]
    for server in servers:
        server.stop()


def test_a_worker_measures_when_asked(addresses: list[str]) -> None:
    with dial(addresses[0]) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)

        def measure(**fields: object) -> worker_pb2.MeasureResponse:
            request = worker_pb2.MeasureRequest(
                protocol_version=PROTOCOL_VERSION,
                **fields,  # type: ignore[arg-type]
            )
            return stub.Measure(request, timeout=20)

        def described() -> common_pb2.NodeInfo:
            request = worker_pb2.DescribeRequest(protocol_version=PROTOCOL_VERSION)
            return stub.Describe(request, timeout=20).node

        assert not described().HasField("speeds")
        link = measure(payload=b"x" * 1000, payload_bytes=3000)
        assert (len(link.payload), link.HasField("speeds")) == (3000, False)
        assert measure(speeds=True).speeds == speeds_message(KNOWN)
        assert described().speeds == speeds_message(KNOWN)
        with pytest.raises(grpc.RpcError, match="payload_bytes is 1048577; at most 1048576"):
            measure(payload_bytes=(1 << 20) + 1)


def test_a_cluster_states_what_it_expects(addresses: list[str]) -> None:
    with perplexity.formed("demo", addresses, "f32", context=256, predict=True) as (cluster, _):
        found = cluster.status().prediction
        assert found.decode_tokens_per_second > 0
        assert found.decode_many_tokens_per_second >= found.decode_tokens_per_second
        assert found.prefill_tokens_per_second > 0
        assert found.sequences == 8
        assert found.measured_decode_tokens_per_second == 0


def test_a_cluster_that_is_not_measured_expects_nothing(addresses: list[str]) -> None:
    with perplexity.formed("demo", addresses, "f32", context=256) as (cluster, _):
        assert not cluster.status().HasField("prediction")
