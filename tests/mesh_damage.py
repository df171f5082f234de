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

from harness import WorkerProcess, free_port, hearth

from hearth.common.errors import HearthError
from hearth.common.mesh_handshake import HELLO_BYTES, NONCE_BYTES, PROOF_BYTES
from hearth.common.security import Security
from hearth.converter import open_model
from hearth.root.app import Core, core
from hearth.root.engine.mailbox import Delta
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.settings import ClusterSettings

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
    """A root in this process, and a worker behind a proxy; `flip` asks for a text.

    Without a supervisor, which would leave out a mesh that breaks again and again.
    """

    def __init__(self, core: Core, proxy: Proxy, log: Path) -> None:
        self._core, self._proxy, self._log = core, proxy, log
        self._losses: list[str] = []
        # Times that the cluster was formed again of the same shards.
        self.kept = 0
        self._wanted = self._ask()

    def flip(self, flip: Flip) -> str:
        """The outcome: "right text", a wrong one, or an error; and if it was not noticed."""
        told = len(self._log.read_text())
        self._losses = []
        self._proxy.flip = flip
        try:
            outcome = "right text" if self._ask() == self._wanted else "WRONG TEXT"
        except HearthError as error:
            outcome = f"error: {error.message[:100]}"
        self._proxy.flip = None
        if not flip.done.is_set():
            return "not flipped"
        if not self._losses:
            return f"{outcome}, NOT NOTICED"
        more = self._log.read_text()[told:] + " ".join(self._losses)
        if not any(words in more for words in ("arrived changed", "out of step")):
            return f"{outcome}, for another reason: {self._losses}"
        return outcome

    def _ask(self) -> list[int]:
        """Token ids of the text; forms the cluster again when it is lost meanwhile."""
        tokens: list[int] = []
        failures: list[HearthError] = []
        params = GenerateParams(
            tuple(self._core.engine.tokenizer.encode(PROMPT)),
            TOKENS,
            sampling=Sampling(temperature=0.0),
            ignore_eos=True,
        )

        def generate() -> None:
            try:
                for event in self._core.engine.generate(params):
                    if isinstance(event, Delta):
                        tokens.extend(event.token_ids)
            except HearthError as error:
                failures.append(error)

        thread = threading.Thread(target=generate)
        thread.start()
        cluster = self._core.cluster
        until = time.monotonic() + SECONDS
        while thread.is_alive():
            assert time.monotonic() < until, "the text did not end"
            thread.join(0.01)
            if thread.is_alive() and cluster.lost is not None:
                self._losses.append(cluster.lost.message)
                limits = cluster.form()
                self.kept += cluster.pages_kept
                self._core.engine.resume(limits, cluster.pages_kept)
        if failures:
            raise failures[0]
        return tokens


@contextmanager
def damaged(folder: Path, *, tls: bool) -> Iterator[Damaged]:
    """A running cluster; ends it after."""
    options: tuple[str, ...] = ()
    security = None
    if tls:
        assert hearth("certs", "init", str(folder / "certs")).returncode == 0
        options = ("--tls", str(folder / "certs" / "worker"))
        security = Security(folder / "certs" / "root")
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
        model = running.enter_context(open_model("demo"))
        settings = ClusterSettings(
            workers=(f"127.0.0.2:{port}",), threads=1, kv_type="f32", security=security
        )
        made = running.enter_context(core(model, settings, pause_seconds=SECONDS))
        assert ("plain text" in " ".join(made.cluster.status().notes)) != tls
        yield Damaged(made, proxies[1], worker.log)


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
