"""A secured cluster as processes, and calls to it with various certificates and tokens."""

from __future__ import annotations

import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from harness import ServiceProcess, WorkerProcess, free_port, hearth

from hearth.common import pki
from hearth.v1 import root_pb2, worker_pb2

PROMPT = "Once upon a time"
STEPS = 24
GENERATE = ("generate", "--prompt", PROMPT, "--max-tokens", str(STEPS))
SECONDS = 30.0

WORKER_RPCS: list[MethodDescriptor] = [
    *worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].methods,
    *health_pb2.DESCRIPTOR.services_by_name["Health"].methods,
]
ROOT_RPCS: list[MethodDescriptor] = [
    *root_pb2.DESCRIPTOR.services_by_name["RootService"].methods,
    *health_pb2.DESCRIPTOR.services_by_name["Health"].methods,
]


@dataclass
class Cluster:
    """A root and two workers with certificates, and the ports of each."""

    ours: Path
    theirs: Path
    root: ServiceProcess
    workers: list[WorkerProcess]
    mesh: str
    metrics: dict[str, str]
    health: dict[str, str]

    @property
    def processes(self) -> list[ServiceProcess]:
        return [self.root, *self.workers]

    @property
    def addresses(self) -> dict[str, str]:
        """Every port there is, by what it is."""
        found = {"root": self.root.address, "worker": self.workers[0].address, "mesh": self.mesh}
        found |= {f"metrics of the {name}": address for name, address in self.metrics.items()}
        return found | {f"health of the {name}": address for name, address in self.health.items()}


def local_port() -> str:
    return f"127.0.0.1:{free_port()}"


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Ends all of it after."""
    ours, theirs = folder / "ours", folder / "theirs"
    assert hearth("certs", "init", str(ours)).returncode == 0
    pki.make(theirs, [], 30)
    mesh, metrics, health = (
        local_port(),
        {name: local_port() for name in ("root", "worker")},
        {name: local_port() for name in ("root", "worker")},
    )
    running: list[ServiceProcess] = []
    try:
        tls = ("--tls", str(ours / "worker"))
        first = ["--mesh-port", mesh.rpartition(":")[2], "--metrics", metrics["worker"]]
        first += ["--health", health["worker"]]
        workers = [
            WorkerProcess(*tls, *more, log=folder / f"worker-{i}.log")
            for i, more in enumerate((first, []))
        ]
        running += workers
        root = ServiceProcess(
            *("root", "--model", "demo", "--listen", "127.0.0.1:0", "--threads", "1"),
            *("--workers", *(w.address for w in workers), "--tls", str(ours / "root")),
            *("--metrics", metrics["root"], "--health", health["root"]),
            log=folder / "root.log",
        )
        running.append(root)
        yield Cluster(ours, theirs, root, workers, mesh, metrics, health)
    finally:
        for process in reversed(running):
            process.end()


def channel(
    address: str, ca: Path | None, own: Path | None = None, token: str | None = None
) -> grpc.Channel:
    """A channel with the certificate in `own`, which takes servers of the CA in `ca` for good."""
    if ca is None:
        return grpc.insecure_channel(address)
    pair = [(own / name).read_bytes() for name in ("tls.key", "tls.crt")] if own else [None, None]
    credentials = grpc.ssl_channel_credentials((ca / "ca.crt").read_bytes(), *pair)
    if token is not None:
        carried = grpc.access_token_call_credentials(token)
        credentials = grpc.composite_channel_credentials(credentials, carried)
    # Whatever the server calls itself: an intruder does not ask.
    certified = address.rpartition(":")[0]
    return grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", certified)])


def outcome(channel: grpc.Channel, method: MethodDescriptor) -> grpc.RpcError | None:
    """Status of a call with empty messages; None where an answer came first."""
    name = f"/{method.containing_service.full_name}/{method.name}"
    streams = (
        "stream" if s else "unary" for s in (method.client_streaming, method.server_streaming)
    )
    make: Any = getattr(channel, "_".join(streams))
    multi = make(name, lambda message: message, lambda data: data)
    request = iter([b""]) if method.client_streaming else b""
    try:
        if not method.server_streaming:
            multi(request, timeout=SECONDS)
            return None
        call = multi(request, timeout=SECONDS)
        next(call)
        call.cancel()
        return None
    except StopIteration:
        return None
    except grpc.RpcError as error:
        return error


def assert_refused(
    channel: grpc.Channel, methods: list[MethodDescriptor], code: grpc.StatusCode
) -> None:
    with channel:
        for method in methods:
            error: Any = outcome(channel, method)
            assert error is not None, method.full_name
            assert error.code() is code, (method.full_name, error.code(), error.details())


def wait_for_log(process: ServiceProcess, *words: str) -> str:
    """The first line of the log with all of these words."""
    deadline = time.monotonic() + SECONDS
    while True:
        lines = process.log.read_text().splitlines()
        for line in lines:
            if all(word in line for word in words):
                return line
        assert time.monotonic() < deadline, (words, lines)
        time.sleep(0.05)


def scrape(cluster: Cluster, name: str, own: Path | None, scheme: str = "https") -> str:
    context = ssl.create_default_context(cafile=str(cluster.ours / "ca.crt"))
    if own is not None:
        context.load_cert_chain(own / "tls.crt", own / "tls.key")
    url = f"{scheme}://{cluster.metrics[name]}/metrics"
    with urllib.request.urlopen(url, context=context, timeout=SECONDS) as answer:
        return str(answer.read().decode())
