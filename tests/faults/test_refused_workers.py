"""Workers that a root cannot use: absent, busy, foreign, too small; each named, with numbers.

Through the command, as people meet it: one line on stderr, exit code 1, no traceback.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence

import grpc
import pytest
from harness import ServiceProcess, WorkerProcess, hearth, served

from hearth.client import Client
from hearth.common.channels import PROTOCOL_VERSION
from hearth.common.errors import HearthError, Reason
from hearth.common.rpc_errors import abort
from hearth.converter import open_model
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine.engine import Engine
from hearth.root.scheduling.batch import Limits
from hearth.root.settings import ClusterSettings, Joining
from hearth.root.supervisor import Supervisor
from hearth.v1 import common_pb2, root_pb2, worker_pb2, worker_pb2_grpc

Start = Callable[..., ServiceProcess]


def generate(*options: str) -> subprocess.CompletedProcess[str]:
    return hearth("generate", "--model", "demo", "--max-tokens", "4", "--threads", "1", *options)


def refusal(ran: subprocess.CompletedProcess[str]) -> str:
    """The one line that an error is, progress aside."""
    assert ran.returncode == 1, (ran.returncode, ran.stderr)
    assert "Traceback" not in ran.stderr
    lines = [line for line in ran.stderr.splitlines() if not line.startswith(("root: ", "worker "))]
    assert len(lines) == 1, ran.stderr
    assert lines[0].startswith("hearth: ")
    return lines[0]


class Hesitant(Cluster):
    """Its first forming fails for `reason`."""

    reason = ""

    def form(self, workers: Sequence[str] | None = None) -> Limits:
        if self.reason:
            reason, self.reason = self.reason, ""
            raise HearthError(reason, "not now", {"worker": (workers or ("",))[0]})
        return super().form(workers)


@pytest.mark.parametrize("reason", ["NOT_LOADED", "PEER_LOST", "SHUTTING_DOWN"])
def test_what_passes_does_not_end_a_start(start_worker: Start, reason: str) -> None:
    """NOT_LOADED: of one so slow that its lease ended between its loading and its first step."""
    worker = start_worker()
    with open_model("demo", None) as model:
        cluster = Hesitant(model, ClusterSettings(workers=(worker.address,), threads=1, context=64))
        cluster.reason = reason
        engine = Engine(cluster, model.tokenizer(), cluster.expected_limits())
        supervisor = Supervisor(cluster, engine, Joining(wait_seconds=1.0))
        try:
            supervisor.form_first()
            assert cluster.status().state == root_pb2.CLUSTER_STATE_SERVING
        finally:
            supervisor.stop()
            engine.stop(finish=False)
            cluster.close()


def test_absent(start_worker: Start) -> None:
    worker = start_worker()
    worker.kill()  # so that nothing listens where something did
    line = refusal(generate("--workers", worker.address))
    assert worker.address in line
    assert "hearth worker" in line


def test_absent_beside_one_that_is_there(start_worker: Start) -> None:
    there, gone = start_worker(), start_worker()
    gone.kill()
    line = refusal(generate("--workers", there.address, gone.address))
    assert gone.address in line
    assert there.address not in line
    assert generate("--workers", there.address).returncode == 0  # free at once


def test_a_root_waits_for_a_worker_that_is_not_there_yet(
    start_worker: Start, start_root: Start
) -> None:
    early = start_worker()
    early.kill()
    late: list[ServiceProcess] = []
    timer = threading.Timer(1.0, lambda: late.append(start_worker("--listen", early.address)))
    timer.start()
    root = start_root("--model", "demo", "--workers", early.address, "--join-seconds", "50")
    timer.join()
    with Client(root.address) as client:
        assert client.cluster().state == root_pb2.CLUSTER_STATE_SERVING


def test_busy_with_another_root(start_worker: Start, start_root: Start) -> None:
    worker = start_worker()
    root = start_root("--model", "demo", "--workers", worker.address)
    line = refusal(generate("--workers", worker.address))
    assert worker.address in line
    assert "busy" in line
    with Client(root.address) as client:
        # The first root never noticed.
        assert client.generate_text("Once", max_tokens=4, ignore_eos=True, timeout=60)
        assert client.cluster().state == root_pb2.CLUSTER_STATE_SERVING
    assert root.end() == 0
    assert generate("--workers", worker.address).returncode == 0


class OtherVersion(worker_pb2_grpc.WorkerServiceServicer):
    """Answers as Hearth's next protocol would; `polite`: leaves the refusal to the root."""

    def __init__(self, polite: bool) -> None:
        self._polite = polite

    def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> worker_pb2.DescribeResponse:
        if not self._polite:
            problem = f"the root speaks protocol version {request.protocol_version}, this worker 99"
            abort(context, HearthError(Reason.PROTOCOL_VERSION, problem))
        node = common_pb2.NodeInfo(name="tomorrow", version="9.9.9", protocol_version=99)
        return worker_pb2.DescribeResponse(node=node)


@pytest.mark.parametrize("polite", [True, False])
def test_another_protocol_version(polite: bool) -> None:
    with served(OtherVersion(polite)) as address:  # type: ignore[abstract]
        line = refusal(generate("--workers", address))
    assert address in line
    assert "99" in line
    assert str(PROTOCOL_VERSION) in line.replace(address, "")


def test_a_server_that_is_no_worker(start_root: Start) -> None:
    """A root listed as a worker: it has no such service."""
    root = start_root("--model", "demo")
    line = refusal(generate("--workers", root.address))
    assert root.address in line


def test_a_worker_without_the_memory(start_worker: Start) -> None:
    worker = start_worker("--memory-limit", "1MiB", "--name", "tiny")
    line = refusal(generate("--workers", worker.address))
    assert "worker tiny" in line
    assert "1.0 MiB" in line  # what there is
    assert "for weights" in line  # what is needed
    assert "use more nodes" in line


def test_a_root_without_the_memory(start_worker: Start) -> None:
    worker = start_worker()
    line = refusal(generate("--workers", worker.address, "--memory-limit", "1MiB"))
    assert "the root has 1.0 MiB" in line
    assert generate("--workers", worker.address).returncode == 0


def test_a_worker_named_twice(start_worker: Start) -> None:
    """One worker cannot be two nodes."""
    worker = start_worker()
    line = refusal(generate("--workers", worker.address, worker.address))
    assert worker.address in line


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:0x10", "127.0.0.1:99999", ":", "a/b:1"])
def test_an_address_that_is_none(address: str) -> None:
    line = refusal(generate("--workers", address))
    assert address in line


@pytest.mark.parametrize("what", ["worker", "root", "metrics"])
def test_a_port_in_use(start_worker: Callable[..., WorkerProcess], what: str) -> None:
    taken = start_worker().address
    ran = {
        "worker": lambda: hearth("worker", "--listen", taken, "--cache-dir", "none"),
        "root": lambda: hearth("root", "--model", "demo", "--listen", taken),
        "metrics": lambda: generate("--metrics", taken),
    }[what]()
    line = refusal(ran)
    assert taken in line
    assert "another" in line  # another program has it, or choose another
