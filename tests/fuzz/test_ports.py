"""Every port of a plain cluster, spoken to at random: frames of HTTP/2, gRPC, HTTP/1
and the mesh that are nearly right, in pieces, half-open and cut. While they are open the services
answer, and when they are gone everything that they took has been given back.
"""

from __future__ import annotations

import random
import socket
import struct
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import fuzzing
import grpc
import pytest
from harness import ServiceProcess, WorkerProcess, free_port

from hearth.client import Client
from hearth.common.channels import PROTOCOL_VERSION, dial
from hearth.v1 import worker_pb2, worker_pb2_grpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATHS = [
    b"/hearth.v1.WorkerService/Forward",
    b"/hearth.v1.WorkerService/LoadWeights",
    b"/hearth.v1.WorkerService/Describe",
    b"/hearth.v1.RootService/Generate",
    b"/hearth.v1.RootService/GetCluster",
    b"/grpc.health.v1.Health/Watch",
    b"/none",
]
# Connections held open at once to a port; a port may hang up on more.
HELD = 8
# What memory of a service may grow by over all of the noise: buffers of allocators, no more.
GROWTH_BYTES = 96 << 20


def frame(kind: int, flags: int, stream: int, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + body


def headers(path: bytes) -> bytes:
    """A gRPC call's headers, as literals without an index."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    return b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields
    )


def http2(dice: random.Random) -> bytes:
    """A beginning that is right, then frames of which some are not."""
    out = PREFACE + frame(4, 0, 0, b"")
    stream = 1
    for _ in range(dice.randint(1, 12)):
        what = dice.random()
        if what < 0.4:
            out += frame(1, 4, stream, headers(dice.choice(PATHS)))
            body = dice.randbytes(dice.choice([0, 1, 30, 2000]))
            claimed = dice.choice([len(body), len(body), 0, 0xFFFFFFFF, 1 << 20])
            message = bytes([dice.choice([0, 0, 1, 255])]) + struct.pack(">I", claimed) + body
            out += frame(0, dice.choice([0, 1]), stream, message)
            stream += 2
        elif what < 0.6:
            out += frame(1, 4, stream, dice.randbytes(dice.randint(1, 60)))
            stream += 2
        else:
            body = dice.randbytes(dice.choice([0, 4, 5, 6, 8, 100]))
            length = dice.choice([None, None, 0, len(body) + 1, (1 << 24) - 1])
            number = dice.choice([0, 1, stream, 2, 0x7FFFFFFF])
            out += frame(dice.randint(0, 12), dice.randint(0, 255), number, body, length)
    return out


def http1(dice: random.Random) -> bytes:
    method = dice.choice([b"GET", b"POST", b"HEAD", b"\0", b"GET" * 5000])
    path = dice.choice([b"/metrics", b"/", b"/" + b"a" * 70_000, b"/%00?x[]=\xff"])
    lines = [b"Host: x", b"Content-Length: 99999999", b"Transfer-Encoding: chunked", b"\xff: \0"]
    head = b"\r\n".join(dice.choices(lines, k=dice.randint(0, 4)))
    return method + b" " + path + b" HTTP/1.1\r\n" + head + dice.choice([b"", b"\r\n\r\n"])


def hello(dice: random.Random) -> bytes:
    """A rank's messages to the mesh port, without the key."""
    rank, peer = dice.choice([0, 1, 2, 0xFFFFFFFF]), dice.choice([0, 1, 0xFFFFFFFF])
    return struct.pack("<8sII32s32s", b"HRTHMSH1", rank, peer, dice.randbytes(32), bytes(32))


def noise(dice: random.Random) -> bytes:
    kinds: list[Callable[[random.Random], bytes]] = [
        http2, http2, http2, http1, hello, lambda d: d.randbytes(d.choice([1, 9, 500, 20_000])),
        lambda _: b"", lambda d: b"\x16\x03\x01" + d.randbytes(200),
    ]  # fmt: skip
    data = dice.choice(kinds)(dice)
    if dice.random() < 0.3 and data:
        place = dice.randrange(len(data))
        data = data[:place] + dice.randbytes(1) + data[place + dice.choice([0, 1, 3]) :]
    return data[: dice.randint(0, len(data))] if dice.random() < 0.2 else data


def disturb(ports: dict[str, int], dice: random.Random, count: int) -> list[socket.socket]:
    """So many connections to each port; those that are still open."""
    held: list[socket.socket] = []
    for port in ports.values():
        mine: list[socket.socket] = []
        for _ in range(count):
            fuzzing.examples += 1
            connection = socket.create_connection(("127.0.0.1", port), timeout=5)
            with suppress(OSError):
                data = noise(dice)
                cut = dice.randint(0, len(data))
                connection.sendall(data[:cut])
                connection.sendall(data[cut:])
                if dice.random() < 0.2:
                    connection.shutdown(socket.SHUT_WR)
                if dice.random() < 0.3:
                    connection.settimeout(0.02)
                    connection.recv(1000)
            if dice.random() < 0.3 and len(mine) < HELD:
                mine.append(connection)
            else:
                if dice.random() < 0.3:  # a reset, and no goodbye
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.close()
        held += mine
    return held


class Cluster:
    """A root and a worker without certificates, all of their ports open."""

    def __init__(self, worker: WorkerProcess, root: ServiceProcess, ports: dict[str, int]) -> None:
        self.worker, self.root, self.ports = worker, root, ports
        with dial(worker.address) as channel:
            self.ports["mesh"] = self.describe(channel).mesh_port

    @staticmethod
    def describe(channel: grpc.Channel) -> worker_pb2.DescribeResponse:
        request = worker_pb2.DescribeRequest(protocol_version=PROTOCOL_VERSION)
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        answer: worker_pb2.DescribeResponse = stub.Describe(request, timeout=30)
        return answer

    def answers(self) -> str:
        """Everybody answers a normal request; the text of one."""
        with dial(self.worker.address) as channel:
            assert self.describe(channel).held_by
        for name in ("root-health", "worker-health"):
            url = f"http://127.0.0.1:{self.ports[name]}/readyz"
            with urllib.request.urlopen(url, timeout=30) as response:
                assert response.read() == b"ready\n"
        for name in ("root-metrics", "worker-metrics"):
            url = f"http://127.0.0.1:{self.ports[name]}/metrics"
            with urllib.request.urlopen(url, timeout=30) as response:
                assert b"hearth_build_info" in response.read()
        with Client(self.root.address) as client:
            return client.generate_text("Once", max_tokens=8, timeout=60)

    def held_by_processes(self) -> list[int]:
        """Descriptors and threads of both."""
        folders = [Path(f"/proc/{process.pid}") for process in (self.worker, self.root)]
        return [
            sum(1 for _ in (folder / what).iterdir())
            for folder in folders
            for what in ("fd", "task")
        ]

    def resident(self) -> list[int]:
        found = []
        for process in (self.worker, self.root):
            pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
            found.append(int(pages) * 4096)
        return found


@pytest.fixture
def cluster(
    start_worker: Callable[..., WorkerProcess], start_root: Callable[..., ServiceProcess]
) -> Iterator[Cluster]:
    names = [
        f"{service}-{kind}" for service in ("root", "worker") for kind in ("metrics", "health")
    ]
    ports = {name: free_port() for name in names}

    def options(service: str) -> list[str]:
        given: list[str] = []
        for kind in ("metrics", "health"):
            given += [f"--{kind}", f"127.0.0.1:{ports[f'{service}-{kind}']}"]
        return given

    worker = start_worker(*options("worker"))
    root = start_root("--model", "demo", "--workers", worker.address, *options("root"))
    for name, service in (("worker", worker), ("root", root)):
        ports[name] = int(service.address.rpartition(":")[2])
    yield Cluster(worker, root, ports)


def test_noise_on_every_port(cluster: Cluster) -> None:
    dice = random.Random(fuzzing.WANTED)
    expected = cluster.answers()
    # What a first round makes that stays: threads of pools, buffers.
    for connection in disturb(cluster.ports, dice, 20):
        connection.close()
    assert cluster.answers() == expected
    time.sleep(1.0)
    before, resident = cluster.held_by_processes(), cluster.resident()
    for _ in range(2 + fuzzing.WANTED // 4000):
        held = disturb(cluster.ports, dice, 25)
        assert cluster.answers() == expected  # while they are open
        for connection in held:
            connection.close()
    assert cluster.answers() == expected
    deadline = time.monotonic() + 40
    while True:
        # Each may have a few more: a keepalive, a thread that has not ended.
        after = cluster.held_by_processes()
        if all(now <= then + 3 for now, then in zip(after, before, strict=True)):
            break
        assert time.monotonic() < deadline, f"descriptors and threads: {before}, then {after}"
        time.sleep(0.2)
    for now, then in zip(cluster.resident(), resident, strict=True):
        assert now - then < GROWTH_BYTES
    for service in (cluster.worker, cluster.root):
        log = service.log.read_text()
        assert service.process.poll() is None
        assert "terminate called" not in log
        assert "Segmentation" not in log


def test_a_call_by_a_name_that_is_no_text(start_root: Callable[..., ServiceProcess]) -> None:
    """gRPC's own asyncio server closes its port at such a call, found by the noise above."""
    root = start_root("--model", "demo")
    port = int(root.address.rpartition(":")[2])
    bad = PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, headers(b"/\xff\xb5"))
    with Client(root.address) as client:
        expected = client.generate_text("Once", max_tokens=300)
        stream = client.generate("Once", max_tokens=300)
        text = next(stream)
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(bad)
                connection.settimeout(5)
                with suppress(OSError):
                    connection.recv(1000)
            with Client(root.address) as other:
                assert other.generate_text("Once", max_tokens=8, timeout=60)
        assert text + "".join(stream) == expected
    assert root.end() == 0
    assert len(root.log.read_text().splitlines()) < 12
