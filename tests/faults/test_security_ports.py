"""The ports of a cluster: which may open at all, the one for probes, noise and silence at each."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness import ServiceProcess, WorkerProcess, begin, free_port, hearth, status_bytes
from http2 import FLOODS, Raw
from prometheus_client import CollectorRegistry
from secured import (
    PROMPT,
    ROOT_RPCS,
    SECONDS,
    STEPS,
    WORKER_RPCS,
    Cluster,
    local_port,
    outcome,
    scrape,
)
from serving_fakes import Root

from hearth.client import Client, Unreachable
from hearth.common import pki
from hearth.common.channels import MAX_CONNECTIONS, PROTOCOL_VERSION, dial
from hearth.common.metrics_port import MetricsPort
from hearth.common.security import Security
from hearth.v1 import worker_pb2, worker_pb2_grpc
from hearth.worker.server import WorkerServer

# Health, which needs nothing.


def test_health_is_plain_and_nothing_else(cluster: Cluster) -> None:
    for name in ("root", "worker"):
        address = cluster.health[name]
        ran = hearth("healthcheck", address)
        assert (ran.returncode, ran.stdout) == (0, "ready\n"), ran.stderr
        with grpc.insecure_channel(address) as plain:
            for method in (*WORKER_RPCS, *ROOT_RPCS):
                error: Any = outcome(plain, method)
                assert error.code() is grpc.StatusCode.UNAVAILABLE, method.full_name
    ran = hearth("healthcheck", environ={"HEARTH_HEALTH": cluster.health["worker"]})
    assert ran.returncode == 0
    # A port with TLS is not a health port.
    assert hearth("healthcheck", cluster.root.address).returncode == 1


def test_health_of_a_root_that_waits_for_its_workers() -> None:
    health = local_port()
    root = begin(
        *("root", "--model", "demo", "--listen", local_port(), "--health", health),
        *("--workers", local_port(), "--join-seconds", "60"),
    )
    try:
        deadline = time.monotonic() + SECONDS
        while hearth("healthcheck", health, "--liveness").returncode:
            assert time.monotonic() < deadline
        ran = hearth("healthcheck", health)
        assert ran.returncode == 1
        assert f"{health} answers 503: not ready" in ran.stderr
    finally:
        root.kill()
        root.communicate()
    ran = hearth("healthcheck", health)
    assert ran.returncode == 1
    assert health in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_healthcheck_loads_nothing_that_it_does_not_need() -> None:
    """Container engines start it every few seconds."""
    code = (
        "import sys; from hearth.cli.main import main; "
        f"code = main(['healthcheck', '{local_port()}', '--timeout', '1']); "
        "print(code, {'numpy', 'hearth._native', 'hearth.root', 'cryptography'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout == "1 set()\n", ran.stderr


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"\0" * 100_000, b"HTTP/1.1 200 OK\r\n\r\nready"]
)
def test_healthcheck_ends_however_slowly_the_answer_comes(answer: bytes) -> None:
    """A byte now and then renews a socket's own limit; this one is for the whole answer."""
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer, suppress(OSError):
            peer.sendall(answer)
            while not ended.wait(0.1):
                peer.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        try:
            ran = hearth("healthcheck", address, "--timeout", "0.5", seconds=60)
        finally:
            ended.set()
            thread.join()
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr) < 500
    assert ran.returncode == 1
    assert f"no answer from the health port {address}" in ran.stderr


# What does not start.


def test_beyond_loopback_without_tls_nothing_starts(cluster: Cluster, tmp_path: Path) -> None:
    everywhere, keys = "0.0.0.0:0", str(cluster.ours / "api-keys")
    tries: list[tuple[str, ...]] = [
        ("worker", "--cache-dir", "none", "--listen", everywhere),
        ("worker", "--cache-dir", "none", "--listen", "127.0.0.1:0", "--metrics", everywhere),
        ("root", "--model", "demo", "--listen", everywhere),
        ("root", "--model", "demo", "--listen", "127.0.0.1:0", "--metrics", everywhere),
        # Keys alone would be read on their way.
        ("root", "--model", "demo", "--listen", everywhere, "--api-keys", keys),
        ("generate", "--model", "demo", "--max-tokens", "1", "--metrics", everywhere),
    ]
    with ThreadPoolExecutor(2) as pool:
        for ran in pool.map(lambda arguments: hearth(*arguments), tries):
            assert (ran.returncode, ran.stdout) == (1, ""), ran.args
            assert len(ran.stderr.splitlines()) == 1, ran.stderr
            for word in (everywhere, "--tls", "--insecure"):
                assert word in ran.stderr
    line = hearth("root", "--model", "demo", "--listen", "127.0.0.1:0", "--workers-mdns").stderr
    for word in ("--workers-mdns", "--tls", "--insecure"):
        assert word in line
    ran = hearth("worker", "--tls", str(tmp_path / "nowhere"), "--cache-dir", "none")
    assert ran.returncode == 2
    assert str(tmp_path / "nowhere" / "ca.crt") in ran.stderr


def test_beyond_loopback_with_what_it_takes(cluster: Cluster, tmp_path: Path) -> None:
    ways: dict[str, tuple[tuple[str, ...], str]] = {
        "tls": (("--tls", str(cluster.ours / "worker")), ""),
        "environment": ((), str(cluster.ours / "worker")),
        # What the command says goes before what the environment does.
        "insecure": (("--insecure",), "/nowhere"),
    }
    for name, (way, tls) in ways.items():
        options = ("--listen", "0.0.0.0:0", "--threads", "1", "--cache-dir", "none")
        worker = ServiceProcess(
            *("worker", *options, *way),
            log=tmp_path / f"{name}.log",
            environ={"HEARTH_TLS": tls},
        )
        assert worker.end() == 0
        assert ("--insecure" in worker.log.read_text()) == (name == "insecure")


# What comes to every port of a machine sooner or later.


def connect(address: str) -> socket.socket:
    """A connection that has said nothing yet."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), SECONDS)


def noise(address: str, data: bytes) -> None:
    """Connects, says `data`, and reads until the connection is closed or nothing comes."""
    with connect(address) as stranger, suppress(OSError):
        stranger.settimeout(0.2)
        stranger.sendall(data)
        while stranger.recv(4096):
            pass


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NOISE = [
    b"",
    os.urandom(1),
    os.urandom(4096),
    b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET " + b"/" * 100_000,
    PREFACE + os.urandom(4096),
    PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\xff\xff\xff\x01\x04" + os.urandom(64),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
    b"\x16\x03\x01\xff\xff" + os.urandom(70_000),
]


def silent_call(address: str) -> grpc.Call:
    """A call to a root without its one message, after the root has ended it."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(2 * SECONDS)
        yield from ()

    with grpc.insecure_channel(address) as channel:
        method: Any = channel.stream_stream("/hearth.v1.RootService/GetModel")
        call: grpc.Call = method(nothing(), timeout=2 * SECONDS)
        call.exception(timeout=2 * SECONDS)  # type: ignore[attr-defined]
        over.set()
    return call


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_every_port_closes_what_is_silent(tls: bool, tmp_path: Path) -> None:
    """Servers that wait for a second: the others wait for 5 or 10."""
    pki.make(tmp_path, [], 30)
    secured = {role: Security(tmp_path / role) if tls else None for role in ("root", "worker")}
    with ExitStack() as stack:
        ports = [free_port() for _ in range(3)]
        worker = WorkerServer(
            threads=1,
            listen="127.0.0.1:0",
            mesh_port=ports[0],
            health_address=f"127.0.0.1:{ports[1]}",
            security=secured["worker"],
            silence_seconds=1.0,
        )
        ports.append(worker.start())
        stack.callback(worker.stop, 0)
        options = {
            "health_address": f"127.0.0.1:{ports[2]}",
            "security": secured["root"],
            "silence_seconds": 1.0,
        }
        root = stack.enter_context(Root(server_options=options))
        ports.append(int(root.address.rpartition(":")[2]))
        metrics = MetricsPort(
            "127.0.0.1:0", CollectorRegistry(), secured["worker"], silence_seconds=1.0
        )
        ports.append(metrics.port)
        stack.callback(metrics.stop)
        silent = [connect(f"127.0.0.1:{port}") for port in ports for _ in range(3)]
        # Half of them send how they would begin, and no more.
        for connection in silent[::2]:
            connection.sendall(b"\x16\x03")
        for connection in silent:
            with suppress(ConnectionError):  # hung up on, with something of ours unread
                while connection.recv(4096):
                    pass
            connection.close()
        if not tls:
            call = silent_call(root.address)
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "no message within 1 s" in call.details()


def late_text(address: str, own: Path) -> str:
    """The story, from a root that may refuse connections for a moment yet."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with Client(address, tls=own) as late:
                return late.generate_text(PROMPT, max_tokens=STEPS, timeout=SECONDS)
        except Unreachable:
            assert time.monotonic() < deadline


def test_noise_silence_and_a_flood_at_every_port(
    cluster: Cluster, tmp_path: Path, expected: str
) -> None:
    """With certificates and without: nothing falls, and who was there goes on."""
    mesh, health = local_port(), local_port()
    options = ("--mesh-port", mesh.rpartition(":")[2], "--health", health)
    worker = WorkerProcess(*options, log=tmp_path / "worker.log")
    root = ServiceProcess(
        *("root", "--model", "demo", "--listen", "127.0.0.1:0", "--threads", "1"),
        *("--workers", worker.address, "--metrics", (metrics := local_port())),
        log=tmp_path / "root.log",
    )
    plain = {"root": root.address, "worker": worker.address, "mesh": mesh}
    plain |= {"health": health, "metrics": metrics}
    ports = [*cluster.addresses.values(), *plain.values()]
    own = cluster.ours / "client"
    with ExitStack() as stack:
        stack.callback(worker.end)
        stack.callback(root.end)
        secured = stack.enter_context(Client(cluster.root.address, tls=own))
        plainly = stack.enter_context(Client(root.address))
        assert secured.model().name == plainly.model().name
        pool = stack.enter_context(ThreadPoolExecutor(16))
        silent = [connect(address) for address in ports for _ in range(3)]
        # Half of them say how they would begin, and no more.
        for connection in silent[::2]:
            connection.sendall(b"\x16\x03")
        for future in [pool.submit(noise, port, data) for port in ports for data in NOISE]:
            future.result()
        silent += [connect(cluster.root.address) for _ in range(MAX_CONNECTIONS)]
        # Those who were there before do not notice, nor do the other ports.
        assert secured.generate_text(PROMPT, max_tokens=STEPS, timeout=SECONDS) == expected
        assert plainly.generate_text(PROMPT, max_tokens=STEPS, timeout=SECONDS)
        assert "hearth_build_info" in scrape(cluster, "worker", own)
        assert hearth("healthcheck", health).returncode == 0
        assert hearth("healthcheck", cluster.health["root"]).returncode == 0
        for connection in silent:
            connection.close()
        # There is room again for those who come now, as soon as the root has seen that they left.
        assert late_text(cluster.root.address, own) == expected
        everybody = [*cluster.processes, worker, root]
        assert [process.process.poll() for process in everybody] == [None] * 5
        for process in everybody:
            log = process.log.read_text()
            assert "Traceback" not in log
            assert log.count("refused") < 100


# Floods, for seconds; tests/survival/floods.py does the same for a minute in a cgroup.

# Memory that a port may take for strangers, whatever they send.
FLOOD_BYTES = 400 << 20


@pytest.mark.parametrize("name", ["references", "static_references", "continuations", "open_calls"])
def test_headers_without_acknowledged_settings(cluster: Cluster, name: str) -> None:
    """A header of one byte on the wire costs gRPC 90 bytes, before SETTINGS are acknowledged."""
    targets = (
        (cluster.root, b"/hearth.v1.RootService/GetModel", cluster.ours / "client"),
        (cluster.workers[0], b"/hearth.v1.WorkerService/Describe", None),
    )
    for service, path, own in targets:
        before = status_bytes(service.pid, "VmRSS")
        raws = []
        for _ in range(8):
            raw = Raw(service.address, ca=cluster.ours / "ca.crt", own=own, seconds=0.5)
            raws.append(raw)
            with suppress(OSError):  # no more is read, or it was closed
                for data in itertools.islice(FLOODS[name](raw, path), 100):
                    raw.send(data)
        assert status_bytes(service.pid, "VmRSS") - before < FLOOD_BYTES
        assert service.process.poll() is None
        for raw in raws:
            raw.close()
    own_client = cluster.ours / "client"
    assert late_text(cluster.root.address, own_client)


def test_idle_connections_keep_out_nobody(cluster: Cluster) -> None:
    """256 connections of one host that do nothing, at each port."""
    ports = [*cluster.addresses.values()]
    idle = [connect(address) for address in ports for _ in range(256)]
    for connection in idle[::2]:
        connection.sendall(b"\x16\x03")
    own = cluster.ours / "client"
    for name in ("root", "worker"):
        assert hearth("healthcheck", cluster.health[name], "--liveness").returncode == 0
        assert "hearth_build_info" in scrape(cluster, name, own)
    assert late_text(cluster.root.address, own)
    security = Security(cluster.ours / "root")
    with dial(cluster.workers[0].address, security) as channel:
        request = worker_pb2.DescribeRequest(protocol_version=PROTOCOL_VERSION)
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        assert stub.Describe(request, timeout=SECONDS).held_by
    for connection in idle:
        connection.close()
