"""A cluster whose mesh passes a proxy that flips bits of chosen frames.

    python tests/mesh_damage.py 200          # so many flips with certificates, and without

Every flip must be noticed: the step is lost, the cluster forms again, and the text is the one that
an untouched cluster makes. Exits with 1 if a text was wrong or a flip was not noticed.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness import ServiceProcess, WorkerProcess, free_port, hearth

from hearth.client import Client, HearthError
from hearth.common.mesh_handshake import HELLO_BYTES, NONCE_BYTES, PROOF_BYTES
from hearth.v1 import root_pb2

PROMPT = "Once upon a time"
TOKENS = 40
SECONDS = 60.0
HEADER, TAG, RECORD = 16, 16, 64 << 10


@dataclass
class Flip:
    """One bit to flip, in the frame after `skip` more of a step, of one direction."""

    way: str  # "up": from the root
    skip: int
    part: str  # "header", "payload", "tag"
    # Position within the part, as a fraction.
    place: float
    done: threading.Event = field(default_factory=threading.Event)

    def apply(self, frame: bytearray) -> None:
        payload = struct.unpack_from("<I", frame, 12)[0]
        begin, size = {
            "header": (0, HEADER),
            "payload": (HEADER, min(payload, RECORD)),
            "tag": (HEADER + min(payload, RECORD), TAG),
        }[self.part]
        bit = int(self.place * size * 8)
        frame[begin + bit // 8] ^= 1 << bit % 8


class Proxy:
    """Passes connections at 127.0.0.2 on to 127.0.0.1, the same port."""

    def __init__(self, port: int, mesh: bool) -> None:
        self._port, self._mesh = port, mesh
        self._listener = socket.create_server(("127.0.0.2", port))
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self.flip: Flip | None = None
        self._start(self._accept)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._carry, near, far, "up", HELLO_BYTES)
            self._start(self._carry, far, near, "down", NONCE_BYTES + PROOF_BYTES)

    def _carry(self, source: socket.socket, sink: socket.socket, way: str, greeting: int) -> None:
        with suppress(OSError):
            if self._mesh:
                self._carry_frames(source, sink, way, greeting)
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _carry_frames(
        self, source: socket.socket, sink: socket.socket, way: str, greeting: int
    ) -> None:
        while greeting and (data := source.recv(greeting)):
            sink.sendall(data)
            greeting -= len(data)
        while True:
            frame = bytearray(_exactly(source, HEADER))
            _, step, _, size = struct.unpack("<4I", frame)
            frame += _exactly(source, size + TAG * max(1, -(-size // RECORD)))
            flip = self.flip
            if flip is not None and flip.way == way and step > 0 and not flip.done.is_set():
                flip.skip -= 1
                if flip.skip < 0:
                    flip.apply(frame)
                    flip.done.set()
            sink.sendall(frame)


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = source.recv(size - len(data))
        if not part:
            raise OSError("closed")
        data += part
    return data


class Damaged:
    """A root and a worker behind a proxy; `flip` asks for a text."""

    def __init__(self, folder: Path, tls: bool, worker: WorkerProcess, proxy: Proxy) -> None:
        self._folder, self._tls, self._worker, self._proxy = folder, tls, worker, proxy
        self._flipped = False
        self._root: ServiceProcess | None = None
        self._client: Client | None = None
        self._start_root()
        self._wanted = self._ask()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._root is not None:
            self._root.end()

    def flip(self, flip: Flip) -> str:
        """The outcome: "right text", a wrong one, or an error; and if it was not noticed."""
        if self._flipped:  # a mesh that breaks twice in short time is not used again
            self._start_root()
        self._flipped = True
        before = self._epoch(nodes=2)
        told = {log: len(log.read_text()) for log in self._logs()}
        self._proxy.flip = flip
        try:
            outcome = "right text" if self._ask() == self._wanted else "WRONG TEXT"
        except HearthError as error:
            outcome = f"error: {type(error).__name__}: {str(error)[:100]}"
        self._proxy.flip = None
        if not flip.done.is_set():
            return "not flipped"
        if self._epoch(nodes=1) == before:
            return f"{outcome}, NOT NOTICED"
        more = "".join(log.read_text()[told[log] :] for log in self._logs())
        if not any(words in more for words in ("arrived changed", "out of step")):
            return f"{outcome}, for another reason"
        return outcome

    def _start_root(self) -> None:
        self.close()
        self._flipped = False
        certificates = self._folder / "certs"
        tls = ("--tls", str(certificates / "root")) if self._tls else ()
        port = self._worker.address.rpartition(":")[2]
        self._root = ServiceProcess(
            *("root", "--model", "demo", "--listen", "127.0.0.1:0", "--threads", "1"),
            *("--kv-type", "f32", *tls, "--workers", f"127.0.0.2:{port}"),
            log=self._folder / "root.log",
        )
        own = str(certificates / "client") if self._tls else None
        self._client = Client(self._root.address, tls=own, timeout=SECONDS)

    def _logs(self) -> list[Path]:
        return [self._worker.log, self._folder / "root.log"]

    def _ask(self) -> tuple[str, list[int]]:
        assert self._client is not None
        stream = self._client.generate(
            PROMPT, max_tokens=TOKENS, ignore_eos=True, temperature=0, timeout=SECONDS
        )
        text = "".join(stream)
        return text, list(stream.token_ids)

    def _epoch(self, nodes: int) -> int:
        """The epoch, once the cluster serves with so many nodes at least."""
        assert self._client is not None
        for status in self._client.watch_cluster(timeout=SECONDS):
            if status.state == root_pb2.CLUSTER_STATE_SERVING and len(status.nodes) >= nodes:
                return int(status.epoch)
        raise AssertionError("the cluster did not form again")


@contextmanager
def damaged(folder: Path, *, tls: bool) -> Iterator[Damaged]:
    """A running cluster; ends it after."""
    options: tuple[str, ...] = ()
    if tls:
        assert hearth("certs", "init", str(folder / "certs")).returncode == 0
        options = ("--tls", str(folder / "certs" / "worker"))
    port, mesh = free_port(), free_port()
    with ExitStack() as running:
        worker = WorkerProcess(
            *("--listen", f"127.0.0.1:{port}", "--mesh-port", str(mesh), *options),
            log=folder / "worker.log",
        )
        running.callback(worker.end)
        proxies = [Proxy(port, mesh=False), Proxy(mesh, mesh=True)]
        for each in proxies:
            running.callback(each.close)
        cluster = Damaged(folder, tls, worker, proxies[1])
        running.callback(cluster.close)
        yield cluster


def some_flips(count: int, seed: int) -> list[Flip]:
    """Flips of all parts, directions and places: in the prompt's step, and in later ones."""
    rng = random.Random(seed)
    parts = ["payload", "header", "payload", "tag"]
    ways = ["up", "down"]
    return [
        Flip(ways[i // 4 % 2], rng.choice((0, rng.randrange(12), rng.randrange(12, 300))),
             parts[i % 4], rng.random())
        for i in range(count)
    ]  # fmt: skip


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    bad = 0
    for tls in (True, False):
        outcomes: Counter[str] = Counter()
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, damaged(Path(folder), tls=tls) as cluster:
            for flip in some_flips(count, seed=1):
                outcome = cluster.flip(flip)
                outcomes[f"{flip.part}: {outcome}"] += 1
                bad += outcome != "right text"
        print(f"{count} flips {'with' if tls else 'without'} certificates, "
              f"{time.monotonic() - start:.0f} s")  # fmt: skip
        for outcome, times in sorted(outcomes.items()):
            print(f"  {times:4d} {outcome}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
