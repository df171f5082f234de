"""Nodes of a pipeline that are lost, hang, leave or come back, with several batches in flight.

Real processes. Every text is the one that the cluster made before, without a token lost or
repeated.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import family_models
import pytest
from harness import ServiceProcess

from hearth.client import Client, GenerateStream
from hearth.v1 import root_pb2

Start = Callable[..., ServiceProcess]
PROMPTS = ("Once upon a time", "The old bear", "Lily", "A red apple")
SECONDS = 60.0
PIPELINE = ("--parallel", "pipeline")
HYBRID = ("--parallel", "2x1+1x2")
# Of two workers: the root, and a stage of both.
SMALL_HYBRID = ("--parallel", "1x1+1x2")


class Cluster:
    """A root, its workers in the plan's order, and a client."""

    def __init__(self, start_worker: Start, start_root: Start, folder: Path) -> None:
        self._start_worker = start_worker
        self._start_root = start_root
        self._folder = folder
        self.workers: list[ServiceProcess] = []
        self.root: ServiceProcess
        self._options: tuple[str, ...] = ()
        self._client: Client | None = None

    def begin(self, workers: int, *options: str, model: str = "demo") -> None:
        for number in range(workers):
            self.workers.append(self._start_worker(*self._worker_options(number)))
        self._options = ("--model", model, "--kv-type", "f32", "--context", "2000", *options)
        self.start_root()

    def start_root(self) -> None:
        self.close()
        addresses = (worker.address for worker in self.workers)
        self.root = self._start_root(*self._options, "--workers", *addresses)
        self._client = Client(self.root.address, timeout=SECONDS)

    def restart(self, number: int) -> None:
        address = self.workers[number].address
        options = ("--listen", address, *self._worker_options(number))
        self.workers[number] = self._start_worker(*options)

    def _worker_options(self, number: int) -> tuple[str, ...]:
        return ("--name", f"node{number}", "--cache-dir", str(self._folder / f"cache{number}"))

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def streams(self, tokens: int = 150) -> list[GenerateStream]:
        """A text of each prompt, at once; all have begun."""
        streams = [
            self.client.generate(prompt, max_tokens=tokens, ignore_eos=True, timeout=SECONDS)
            for prompt in PROMPTS
        ]
        for stream in streams:
            next(stream)
        return streams

    def until(self, ready: Callable[[root_pb2.ClusterStatus], bool]) -> root_pb2.ClusterStatus:
        for status in self.client.watch_cluster(timeout=SECONDS):
            if ready(status):
                return status
        raise AssertionError("the root's statuses ended")

    def serves(self, nodes: int) -> root_pb2.ClusterStatus:
        """The status once the cluster serves with so many nodes."""
        return self.until(
            lambda status: (
                status.state == root_pb2.CLUSTER_STATE_SERVING and len(status.nodes) == nodes
            )
        )


def finish(streams: list[GenerateStream]) -> list[list[int]]:
    for stream in streams:
        for _ in stream:
            pass
    return [stream.token_ids for stream in streams]


def stages(status: root_pb2.ClusterStatus) -> list[tuple[int, int]]:
    """The stage and rank of each node."""
    return [(node.placement.stage, node.placement.rank) for node in status.nodes]


@pytest.fixture
def cluster(start_worker: Start, start_root: Start, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(start_worker, start_root, tmp_path)
    yield cluster
    cluster.close()


@pytest.mark.parametrize(
    ("layout", "workers", "lost", "lane"),
    [
        (PIPELINE, 2, 0, "mesh"),
        (PIPELINE, 2, 1, "mesh"),
        (PIPELINE, 2, 0, "grpc"),
        (HYBRID, 3, 2, "mesh"),
        (HYBRID, 3, 1, "grpc"),
    ],
)
def test_a_killed_node_comes_back(
    cluster: Cluster, layout: tuple[str, ...], workers: int, lost: int, lane: str
) -> None:
    cluster.begin(workers, *layout, "--lane", lane)
    wanted = finish(cluster.streams())
    streams = cluster.streams()
    victim = cluster.workers[lost]
    victim.kill()
    status = cluster.until(lambda status: status.state == root_pb2.CLUSTER_STATE_DEGRADED)
    assert victim.address in status.reason
    cluster.restart(lost)
    assert finish(streams) == wanted
    assert stages(cluster.serves(1 + workers)) == stages(status)


@pytest.mark.parametrize("lane", ["mesh", "grpc"])
def test_a_node_that_hangs_is_named(cluster: Cluster, lane: str) -> None:
    """The first of two: the one behind it waits for it, and is not to blame."""
    cluster.begin(2, *PIPELINE, "--lane", lane, "--step-seconds", "3")
    wanted = finish(cluster.streams())
    streams = cluster.streams()
    hanging = cluster.workers[0]
    os.kill(hanging.pid, signal.SIGSTOP)
    try:
        status = cluster.until(lambda status: status.state == root_pb2.CLUSTER_STATE_DEGRADED)
        # (The reason may quote the one behind it, which noticed.)
        lost = [n.address for n in status.nodes if n.state == root_pb2.NODE_STATE_LOST]
        assert lost == [hanging.address], status.reason
    finally:
        os.kill(hanging.pid, signal.SIGCONT)
    assert finish(streams) == wanted


def test_stages_without_a_node_and_with_it_again(cluster: Cluster) -> None:
    """Killed for good: its layers go to the others, and back to it when it comes again."""
    cluster.begin(2, *PIPELINE, "--wait-seconds", "1")
    wanted = finish(cluster.streams())
    streams = cluster.streams(150)
    cluster.workers[0].kill()
    assert stages(cluster.serves(2)) == [(0, 0), (1, 0)]
    assert finish(streams) == wanted
    cluster.restart(0)
    status = cluster.serves(3)
    assert stages(status) == [(0, 0), (1, 0), (2, 0)]
    assert [node.weight_bytes_from_network for node in status.nodes[1:]] == [0, 0]
    assert finish(cluster.streams()) == wanted


def test_a_hybrid_without_a_node(cluster: Cluster) -> None:
    """A layout for 4 nodes on 3 of them: as similar as possible, and the plan says so."""
    cluster.begin(3, *HYBRID, "--wait-seconds", "1")
    wanted = finish(cluster.streams())
    cluster.workers[1].kill()
    status = cluster.serves(3)
    assert stages(status) == [(0, 0), (1, 0), (2, 0)]
    assert any("2x1+1x2 is for 4 nodes, and there are 3" in note for note in status.notes)
    assert finish(cluster.streams()) == wanted


@pytest.mark.parametrize("layout", [PIPELINE, SMALL_HYBRID])
def test_drained_and_stopped_by_its_owner(cluster: Cluster, layout: tuple[str, ...]) -> None:
    cluster.begin(2, *layout)
    placed = stages(cluster.serves(3))
    wanted = finish(cluster.streams())
    streams = cluster.streams()
    cluster.client.drain_worker(cluster.workers[0].address)
    assert len(cluster.client.cluster().nodes) == 2
    assert finish(streams) == wanted
    cluster.client.drain_worker(cluster.workers[0].address, undo=True)
    assert stages(cluster.serves(3)) == placed
    streams = cluster.streams()
    assert cluster.workers[1].end() == 0
    assert finish(streams) == wanted
    cluster.serves(2)


@pytest.mark.parametrize("layout", [PIPELINE, SMALL_HYBRID])
def test_a_root_that_is_killed(cluster: Cluster, layout: tuple[str, ...]) -> None:
    """With steps in flight: the next one finds its workers, and what they hold."""
    cluster.begin(2, *layout)
    wanted = finish(cluster.streams())
    cluster.streams()
    cluster.root.kill()
    cluster.start_root()
    assert finish(cluster.streams()) == wanted
    nodes = cluster.client.cluster().nodes
    assert [node.weight_bytes_from_network for node in nodes[1:]] == [0, 0]


@pytest.mark.parametrize("family", sorted(family_models.CONFIGS))
def test_other_families(cluster: Cluster, tmp_path: Path, family: str) -> None:
    """Experts, norms, states: on two stages, on one node, and on two stages again."""
    model = family_models.write_model(tmp_path / "model", family)
    cluster.begin(1, *PIPELINE, "--wait-seconds", "1", model=str(model))
    wanted = finish(cluster.streams(60))
    streams = cluster.streams(60)
    cluster.workers[0].kill()
    cluster.serves(1)
    assert finish(streams) == wanted
    cluster.restart(0)
    cluster.serves(2)
    assert finish(cluster.streams(60)) == wanted
