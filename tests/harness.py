"""Shared by the tests: `hearth` as processes, and small plans with random weights."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import grpc
import numpy as np
import numpy.typing as npt
import xxhash

from hearth.common.channels import PROTOCOL_VERSION
from hearth.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from hearth.worker.shard import NodeShard

# Not on systems without users' numbers.
SUPERUSER = hasattr(os, "geteuid") and os.geteuid() == 0
_START_SECONDS = 60
_HEARTH = (sys.executable, "-m", "hearth.cli.main")
_NOTHING: Mapping[str, str] = MappingProxyType({})


class ServiceProcess:
    """A `hearth` service that says "hearth NAME listening on ADDRESS"; `end` it by its id."""

    def __init__(
        self,
        *arguments: str,
        log: Path,
        environ: Mapping[str, str] = _NOTHING,
        before: Sequence[str] = (),
        command: Sequence[str] = (),
    ) -> None:
        """before: a command that runs the service, ("ip", "netns", "exec", NAME).

        command: run instead of `hearth NAME`.
        """
        self.log = log
        self.process = subprocess.Popen(
            [*before, *(command or (*_HEARTH, arguments[0])), *arguments[1:]],
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            env=clean_environ(environ),
            text=True,
        )
        timer = threading.Timer(_START_SECONDS, self.process.kill)
        timer.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        timer.cancel()
        if not line.startswith(f"hearth {arguments[0]} listening on "):
            self.kill()
            self.process.stdout.close()
            raise AssertionError(f"{line!r}\n{log.read_text()}")
        self.address = line.split()[-1]

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """As if the machine lost power."""
        self.process.kill()
        self.process.wait()

    def end(self, seconds: float = 20.0) -> int:
        """SIGTERM, then waits; the exit code. Harmless when it has ended already."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.process.returncode


class WorkerProcess(ServiceProcess):
    """A `hearth worker` of one thread on a free port of the loopback, unless options say other."""

    def __init__(
        self,
        *options: str,
        log: Path,
        environ: Mapping[str, str] = _NOTHING,
        before: Sequence[str] = (),
        command: Sequence[str] = (),
    ) -> None:
        settings = ["--listen", "127.0.0.1:0", "--threads", "1"]
        settings += ["--exit-with-parent", str(os.getpid())]
        if "--cache-dir" not in options:
            settings += ["--cache-dir", "none"]
        super().__init__(
            *("worker", *settings, *options),
            log=log,
            environ=environ,
            before=before,
            command=command,
        )


def clean_environ(more: Mapping[str, str] = _NOTHING) -> dict[str, str]:
    """This environment without settings of Hearth but those of `more`; no settings file either.

    Nodes are not measured: many tests measure at the same time.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HEARTH_")}
    return kept | {"HEARTH_CONFIG": os.devnull, "HEARTH_NO_PREDICT": "1"} | dict(more)


def hearth(
    *arguments: str | bytes, environ: Mapping[str, str] = _NOTHING, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end; its exit code, stdout and stderr."""
    return subprocess.run(
        [*_HEARTH, *arguments],
        env=clean_environ(environ),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def begin(*arguments: str) -> subprocess.Popen[str]:
    """The command as a process that is not waited for."""
    return subprocess.Popen(
        [*_HEARTH, *arguments],
        env=clean_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Ports to hand out: below those that the system gives by itself, and for each process that runs
# tests (pytest-xdist names them gw0, gw1 ...) others. So nobody else takes one before its use.
_PORTS_EACH = 600
_FIRST_PORT = 20_000 + _PORTS_EACH * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_ports = itertools.cycle(range(_FIRST_PORT, _FIRST_PORT + _PORTS_EACH))


def free_port() -> int:
    """A port of the loopback that nothing listens on, and that no test had lately."""
    for _ in range(_PORTS_EACH):
        port = next(_ports)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"no free port from {_FIRST_PORT} on")


def status_bytes(pid: int | str, field: str) -> int:
    """A size in a process's status (Linux), in bytes: VmRSS is resident memory, VmHWM its peak.

    pid: of a running process; "self" is this one.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            number, unit = line.split()[1:]
            assert unit == "kB", line
            return int(number) << 10
    raise AssertionError(f"process {pid} has no {field}")


class MemorySink:
    """Keeps what a slice cache reads, given in small pieces."""

    def __init__(self, piece: int = 700) -> None:
        self.data = bytearray()
        self._piece = np.empty(piece, dtype=np.uint8)

    def space(self) -> npt.NDArray[np.uint8]:
        return self._piece

    def filled(self, count: int) -> None:
        self.data += self._piece[:count].data

    def digest(self) -> bytes:
        return xxhash.xxh3_128_digest(self.data)


def shard_config(hidden: int = 128, layers: int = 2, ffn: int = 256) -> common_pb2.ShardConfig:
    """One stage, one rank, no embedding: what the last of two nodes could hold."""
    head_size = 32
    return common_pb2.ShardConfig(
        hidden_size=hidden,
        layers=common_pb2.Range(begin=0, end=layers),
        kinds=[
            common_pb2.Block(
                attention=common_pb2.Attention(
                    heads=common_pb2.Range(begin=0, end=hidden // head_size),
                    kv_heads=common_pb2.Range(begin=0, end=hidden // head_size),
                    key_size=head_size,
                    value_size=head_size,
                    scale=head_size**-0.5,
                    rope=0,
                ),
                feed_forward=common_pb2.FeedForward(
                    units=common_pb2.Range(begin=0, end=ffn),
                    activation=common_pb2.ACTIVATION_SILU,
                    gated=True,
                ),
                input_norms=True,
                residual_scale=1.0,
            )
        ],
        kind_of_layer=[0] * layers,
        ropes=[
            common_pb2.Rope(
                frequencies=[10000 ** (-2 * i / head_size) for i in range(head_size // 2)],
                magnitude=1.0,
            )
        ],
        vocab=common_pb2.Range(begin=0, end=256),
        norm=common_pb2.NORM_KIND_RMS,
        norm_epsilon=1e-5,
        embedding_scale=1.0,
        logit_scale=1.0,
        kv_type=common_pb2.KV_TYPE_F32,
        page_size=16,
        max_pages=16,
        max_step_tokens=32,
        vocab_size=256,
    )


class Plan:
    """A LoadBegin with random f32 weights, the same for the same config, and its slices' bytes."""

    def __init__(
        self,
        config: common_pb2.ShardConfig | None = None,
        root_id: str = "root-a",
        epoch: int = 1,
        ranks: int = 2,
    ) -> None:
        self.config = config or shard_config()
        self.begin = worker_pb2.LoadBegin(
            protocol_version=PROTOCOL_VERSION,
            lease=worker_pb2.Lease(root_id=root_id, root_name=root_id, epoch=epoch),
            placement=common_pb2.Placement(stage=0, stages=1, rank=ranks - 1, ranks=ranks),
            shard=self.config,
            lane=common_pb2.LANE_GRPC,
            sync_type=common_pb2.SYNC_TYPE_F32,
        )
        self.slices: list[npt.NDArray[np.uint8]] = []
        self.reads: list[int] = []
        for seed, (name, shape) in enumerate(NodeShard(self.config).expected().items()):
            rows, columns = shape
            values = np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)
            data = (values / np.float32(np.sqrt(columns))).view(np.uint8).reshape(-1)
            self.slices.append(data)
            self.begin.manifest.add(
                name=name,
                type=common_pb2.WEIGHT_TYPE_F32,
                rows=rows,
                columns=columns,
                identity=hashlib.sha256(f"{name} {rows} {columns} {seed}".encode()).digest(),
                size_bytes=data.size,
            )
        self.total = sum(data.size for data in self.slices)

    def read(self, index: int, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """The SliceReader of this plan; remembers which slices were begun."""
        if begin == 0:
            self.reads.append(index)
        entry = self.begin.manifest[index]
        row_bytes = entry.size_bytes // entry.rows
        return self.slices[index][begin * row_bytes : end * row_bytes]

    def local_shard(self) -> NodeShard:
        """The same shard in this process, to compare with."""
        shard = NodeShard(self.config)
        for entry, data in zip(self.begin.manifest, self.slices, strict=True):
            shard.load(entry, data)
        return shard


@contextmanager
def served(service: worker_pb2_grpc.WorkerServiceServicer) -> Iterator[str]:
    """The address of a server of this service, which stands in for a worker."""
    server = grpc.server(futures.ThreadPoolExecutor(4, "rpc-fake"))
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
