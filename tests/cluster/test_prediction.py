"""Workers that measure themselves, and a cluster that states what it expects."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import grpc
import perplexity
import pytest

from hearth.common.channels import PROTOCOL_VERSION, dial
from hearth.common.speeds import Speeds, speeds_message
from hearth.converter import open_model
from hearth.root.app import core, serving
from hearth.root.cluster import forming, measuring
from hearth.root.cluster.links import WorkerLink
from hearth.root.cluster.measuring import Root
from hearth.root.engine.mailbox import Delta
from hearth.root.engine.params import GenerateParams
from hearth.root.planning import kept
from hearth.root.planning.drift import Drift
from hearth.root.planning.machines import Machine
from hearth.root.settings import ClusterSettings, Serving
from hearth.v1 import common_pb2, root_pb2, worker_pb2, worker_pb2_grpc
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


@pytest.mark.parametrize("how", ["auto", "offer"])
def test_shares_follow_the_measured_speeds(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """By a clock that shows the second worker at half of the others' speed."""
    monkeypatch.setattr(Drift, "node_seconds", property(lambda _: (0.02, 0.02, 0.04)))
    monkeypatch.setattr(Drift, "decode", property(lambda _: 1 / 0.042))
    settings = ClusterSettings(
        workers=tuple(addresses), context=256, threads=1, predict=True, rebalance=how
    )
    with (
        open_model("demo") as model,
        core(model, settings, form=False, pause_seconds=30) as running,
        serving(running, Serving(listen="127.0.0.1:0")),
    ):

        def write() -> list[int]:
            ids = tuple(running.engine.tokenizer.encode("Once upon a time"))
            made: list[int] = []
            for event in running.engine.generate(GenerateParams(ids, 80, ignore_eos=True)):
                made += event.token_ids if isinstance(event, Delta) else ()
            return made

        def weights() -> list[int]:
            return [node.weight_bytes for node in running.cluster.status().nodes[1:]]

        even = weights()
        assert even[0] == even[1]
        first = write()
        assert len(first) == 80
        offers = [note for note in running.cluster.status().notes if "--shares" in note]
        if how == "offer":
            (offer,) = offers
            assert "root and workers compute 20, 20, 40 ms of a token" in offer
            assert "(--rebalance auto takes such shares)" in offer
            assert weights() == even
            return
        deadline = time.monotonic() + 60
        while weights() == even or running.cluster.lost is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert weights()[0] > even[0] > weights()[1]
        assert any("measured speeds" in note for note in running.cluster.status().notes)
        assert write() == first
        # Not again so soon.
        assert running.cluster.status().epoch == 2


@pytest.fixture
def slow(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The workers, the second of which is measured to compute at a thousandth of the speed."""
    monkeypatch.setattr(kept, "QUICK_SECONDS", 0.0)
    measure = measuring.measure

    def measured(
        root: Root, links: Sequence[WorkerLink], infos: Sequence[common_pb2.NodeInfo]
    ) -> list[Machine] | None:
        found = measure(root, links, infos)
        return found and [
            replace(each, read_bandwidth=KNOWN.read_bandwidth / 1e3, prefill_rate=1e8)
            if each.name == "node2"
            else replace(each, host="", layer_seconds=0.01)
            for each in found
        ]

    monkeypatch.setattr(forming, "measure", measured)
    return addresses


def test_a_worker_that_slows_requests_is_left_out(slow: list[str]) -> None:
    """It is a spare, with the reason on the board; where another is lost, it is looked at again."""
    settings = ClusterSettings(workers=tuple(slow), context=256, threads=1, predict=True)
    with (
        open_model("demo") as model,
        core(model, settings, form=False, pause_seconds=30) as running,
        serving(running, Serving(listen="127.0.0.1:0")),
    ):
        ids = tuple(running.engine.tokenizer.encode("Once upon a time"))
        made = [
            token
            for event in running.engine.generate(GenerateParams(ids, 20, ignore_eos=True))
            if isinstance(event, Delta)
            for token in event.token_ids
        ]
        assert len(made) == 20
        status = running.cluster.status()
        assert slow[1] not in [node.address for node in status.nodes]
        (note,) = (note for note in status.notes if "left out" in note)
        assert "node2" in note
        peer = next(peer for peer in status.peers if peer.address == slow[1])
        assert peer.state == root_pb2.PEER_STATE_READY
        assert "(--use-all-workers uses it)" in peer.reason
        assert status.epoch == 1


def test_all_workers_are_used_where_an_option_says_so(slow: list[str]) -> None:
    given = {"context": 256, "predict": True, "use_all_workers": True}
    with perplexity.formed("demo", slow, "f32", **given) as (cluster, _):
        status = cluster.status()
        assert [node.address for node in status.nodes[1:]] == slow
        assert any("hearth cluster drain" in note for note in status.notes)
