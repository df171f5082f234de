"""Workers that are lost while a root serves or loads: real processes, killed or stopped.

Each time the root stays up and says which worker is lost and why; requests wait, and go on without
a token lost or repeated when the worker is back; where nobody waits, they end with a status that
names it. test_survival.py has what becomes of the cluster when a worker stays away.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from harness import ServiceProcess, WorkerProcess, begin

from hearth.client import Cancelled, Client, ClusterUnavailable, GenerateStream, WorkerLost
from hearth.common.errors import HearthError
from hearth.converter import open_model
from hearth.root.cluster.cluster import Cluster
from hearth.root.cluster.streaming import LoadEvent
from hearth.root.settings import ClusterSettings
from hearth.v1 import root_pb2, worker_pb2, worker_pb2_grpc

Start = Callable[..., ServiceProcess]
PROMPT = "Once upon a time"
# Far more tokens than can be made while a signal is on its way: what is lost is lost in the middle.
LONG = ("--context", "50000", "--sequences", "1")
# No request here may outlast this; nothing is decided by it but that something hangs.
SECONDS = 60.0


@pytest.fixture
def serve(start_root: Start) -> Iterator[Callable[..., Client]]:
    """Starts a root of the demo model over workers; a client of it."""
    clients: list[Client] = []

    def start(workers: list[ServiceProcess], *options: str) -> Client:
        addresses = [worker.address for worker in workers]
        root = start_root("--model", "demo", "--workers", *addresses, *LONG, *options)
        clients.append(Client(root.address, timeout=SECONDS))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def endless(client: Client) -> GenerateStream:
    """A generation that goes on and on, of which one piece of text has arrived."""
    stream = client.generate(PROMPT, max_tokens=40000, ignore_eos=True, timeout=SECONDS)
    assert next(stream)
    return stream


def begin_story(client: Client, tokens: int = 300) -> GenerateStream:
    return client.generate(PROMPT, max_tokens=tokens, ignore_eos=True, timeout=SECONDS)


def finish(stream: GenerateStream) -> list[int]:
    for _ in stream:
        pass
    return stream.token_ids


def story(client: Client, tokens: int = 300) -> list[int]:
    """Greedy tokens: the same whenever the cluster works."""
    return finish(begin_story(client, tokens))


def until(client: Client, state: int) -> root_pb2.ClusterStatus:
    """The cluster's status once it is in `state`."""
    for status in client.watch_cluster(timeout=SECONDS):
        if status.state == state:
            return status
    raise AssertionError("the root stopped telling")


def node(status: root_pb2.ClusterStatus, worker: ServiceProcess) -> root_pb2.ClusterNode:
    return next(node for node in status.nodes if node.address == worker.address)


@pytest.mark.parametrize("lane", ["mesh", "grpc"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_worker_killed_in_mid_generation(
    start_worker: Start, serve: Callable[..., Client], lane: str, lost: int
) -> None:
    workers = [start_worker("--name", f"node{rank}") for rank in (1, 2)]
    client = serve(workers, "--lane", lane)
    before = story(client)
    victim, survivor = workers[lost], workers[1 - lost]
    stream = begin_story(client)
    assert next(stream)
    victim.kill()

    status = until(client, root_pb2.CLUSTER_STATE_DEGRADED)
    assert victim.address in status.reason
    assert node(status, victim).state == root_pb2.NODE_STATE_LOST
    assert "was lost" in node(status, victim).reason
    assert node(status, survivor).state != root_pb2.NODE_STATE_LOST
    late = begin_story(client)
    assert client.model().name == "demo"  # what needs no cluster is served all the same

    start_worker("--listen", victim.address, "--name", f"node{lost + 1}")
    assert finish(stream) == before
    assert finish(late) == before
    status = client.cluster()
    assert status.state == root_pb2.CLUSTER_STATE_SERVING
    assert [node.address for node in status.nodes[1:]] == [w.address for w in workers]
    assert survivor.process.poll() is None


def test_a_worker_that_comes_back_without_the_memory(
    start_worker: Start, serve: Callable[..., Client]
) -> None:
    """The root goes on saying what it lacks, and takes it as soon as it has enough."""
    worker = start_worker()
    client = serve([worker], "--wait-seconds", "60")
    before = story(client)
    worker.kill()
    small = start_worker("--listen", worker.address, "--memory-limit", "1MiB", "--name", "small")
    for status in client.watch_cluster(timeout=SECONDS):
        if node(status, worker).state == root_pb2.NODE_STATE_REFUSED:
            break
    assert status.state == root_pb2.CLUSTER_STATE_DEGRADED
    assert "small" in status.reason
    assert "1.0 MiB" in node(status, worker).reason
    small.end()
    start_worker("--listen", worker.address)
    until(client, root_pb2.CLUSTER_STATE_SERVING)
    assert story(client) == before


def test_the_command_ends_with_its_worker(start_worker: Start) -> None:
    """`hearth generate` with a worker elsewhere: what there was of the text, then one line."""
    worker = start_worker()
    command = begin(
        *("generate", "--model", "demo", "--prompt", PROMPT, "--ignore-eos", "--threads", "1"),
        *("--context", "50000", "--workers", worker.address),
    )
    try:
        assert command.stdout is not None
        assert command.stdout.read(len(PROMPT) + 10).startswith(PROMPT)
        worker.kill()
        _, said = command.communicate(timeout=SECONDS)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("hearth: ")
    assert worker.address in last
    assert "Traceback" not in said


def test_requests_wait_no_longer_than_they_are_told_to(
    start_worker: Start, serve: Callable[..., Client]
) -> None:
    """Requests in the batch and in the queue alike; new ones are refused then, with the cause."""
    worker = start_worker("--name", "node1")
    client = serve([worker], "--pause-seconds", "1", "--wait-seconds", "60")
    before = story(client)
    streams = [endless(client), *(begin_story(client, 40000) for _ in range(3))]
    worker.kill()
    for stream in streams:
        with pytest.raises(WorkerLost, match=worker.address) as error:
            finish(stream)
        assert error.value.metadata["worker"] == worker.address
        assert "node1" in error.value.message
        assert "1 s" in error.value.message
    with pytest.raises(ClusterUnavailable, match=worker.address):
        story(client)
    start_worker("--listen", worker.address)
    until(client, root_pb2.CLUSTER_STATE_SERVING)
    assert story(client) == before


def test_a_paused_request_can_be_cancelled(
    start_worker: Start, serve: Callable[..., Client]
) -> None:
    worker = start_worker()
    client = serve([worker], "--wait-seconds", "3600")
    stream = endless(client)
    worker.kill()
    until(client, root_pb2.CLUSTER_STATE_DEGRADED)
    stream.cancel()
    with pytest.raises(Cancelled):
        finish(stream)


def test_an_idle_cluster_notices_too(start_worker: Start, serve: Callable[..., Client]) -> None:
    worker = start_worker()
    client = serve([worker])
    worker.kill()
    status = until(client, root_pb2.CLUSTER_STATE_DEGRADED)
    assert node(status, worker).state == root_pb2.NODE_STATE_LOST


@pytest.mark.parametrize("lane", ["mesh", "grpc"])
def test_a_worker_that_hangs(start_worker: Start, serve: Callable[..., Client], lane: str) -> None:
    """Stopped, not dead: its connections stay open, so only the step's watchdog can tell."""
    workers = [start_worker(), start_worker()]
    client = serve(workers, "--lane", lane, "--step-seconds", "1")
    before = story(client)
    hanging = workers[1]
    stream = begin_story(client)
    assert next(stream)
    os.kill(hanging.pid, signal.SIGSTOP)
    try:
        status = until(client, root_pb2.CLUSTER_STATE_DEGRADED)
        assert hanging.address in status.reason
        assert node(status, hanging).state == root_pb2.NODE_STATE_LOST
    finally:
        os.kill(hanging.pid, signal.SIGCONT)
    assert finish(stream) == before


def test_a_worker_that_leaves_on_purpose(start_worker: Start, serve: Callable[..., Client]) -> None:
    """SIGTERM: nobody waits for it, the rest goes on, and the worker's exit is clean."""
    worker = start_worker()
    client = serve([worker], "--wait-seconds", "3600")
    stream = begin_story(client, 600)
    assert next(stream)
    assert worker.end() == 0
    assert len(finish(stream)) == 600
    (peer,) = client.cluster().peers
    assert peer.state == root_pb2.PEER_STATE_UNREACHABLE
    assert len(client.cluster().nodes) == 1


@pytest.mark.parametrize("state", ["killed", "stopped"])
def test_the_root_ends_well_without_its_worker(
    start_worker: Start, start_root: Start, state: str
) -> None:
    worker = start_worker()
    root = start_root("--model", "demo", "--workers", worker.address, "--drain-seconds", "1")
    os.kill(worker.pid, signal.SIGKILL if state == "killed" else signal.SIGSTOP)
    try:
        assert root.end(60) == 0
    finally:
        os.kill(worker.pid, signal.SIGCONT)


def test_a_worker_that_dies_during_loading(start_worker: Callable[..., WorkerProcess]) -> None:
    """The other worker is let go at once, and the next attempt loads both."""
    # The grace period is longer than any wait here: only a release can free this worker.
    dying, other = start_worker(), start_worker("--lease-grace", "3600")
    settings = ClusterSettings(workers=(other.address, dying.address), threads=1, context=64)

    def kill(address: str, event: LoadEvent) -> None:
        # 200 MiB are each worker's: far more than is on its way at once.
        if address == dying.address and 0 < event.network_bytes < event.total_bytes:
            dying.kill()

    with open_model("random:tinyllama-1.1b", "q40") as model:
        cluster = Cluster(model, settings, on_load=kill)
        try:
            with pytest.raises(HearthError, match=dying.address) as error:
                cluster.form()
            assert error.value.reason in ("WORKER_LOST", "UNREACHABLE", "WORKER_UNREACHABLE")
            assert error.value.metadata["worker"] == dying.address
            status = cluster.status()
            assert status.state == root_pb2.CLUSTER_STATE_DEGRADED
            assert node(status, dying).state == root_pb2.NODE_STATE_LOST
            assert dying.address in node(status, dying).reason
            assert holder(other) == ""
            start_worker("--listen", dying.address)
            cluster.form()
            assert cluster.status().state == root_pb2.CLUSTER_STATE_SERVING
        finally:
            cluster.close()
    assert holder(other) == ""


def holder(worker: ServiceProcess) -> str:
    """The root that holds a worker; "" as soon as it is free, which takes its streams a moment."""
    from hearth.common.channels import PROTOCOL_VERSION, dial

    with dial(worker.address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        deadline = time.monotonic() + 30.0
        while True:
            request = worker_pb2.DescribeRequest(protocol_version=PROTOCOL_VERSION)
            held_by = str(stub.Describe(request, timeout=10).held_by)
            if not held_by or time.monotonic() > deadline:
                return held_by
            time.sleep(0.05)
