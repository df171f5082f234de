"""A root and workers as processes, on the loopback or on a network of namespaces, to be hurt.

Not a test by itself: survival/survive.py and survival/soak.py tell the stories.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from harness import ServiceProcess, WorkerProcess

from hearth.client import Client
from hearth.common import pki
from hearth.v1 import root_pb2

PROMPT = "Once upon a time"
_WORKER_PORT = 7717
_INSIDE = "SURVIVAL_NETWORK"
# Environment variable: `--parallel` of every root.
LAYOUT = "SURVIVAL_PARALLEL"


@dataclass(frozen=True)
class Told:
    """A stream that ended: its tokens, and the longest time between two of its messages."""

    tokens: list[int]
    longest_pause: float
    seconds: float


class Network:
    """Three hosts on a switch, in a network namespace of this process's own: nothing is left of it
    when the process ends. See `entered`."""

    def __init__(self, hosts: int) -> None:
        self.addresses = [f"10.213.7.{10 + host}" for host in range(hosts)]
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "lan", "type", "bridge")
        _ip("addr", "add", "10.213.7.1/24", "dev", "lan")
        _ip("link", "set", "lan", "up")
        for host, address in enumerate(self.addresses):
            _ip("netns", "add", self._name(host))
            _ip(*f"link add v{host} type veth peer name eth0 netns {self._name(host)}".split())
            _ip("link", "set", f"v{host}", "master", "lan", "up")
            self._inside(host, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
            self._inside(host, "ip", "link", "set", "eth0", "up")
            self._inside(host, "ip", "link", "set", "lo", "up")

    @staticmethod
    def entered(*arguments: str) -> bool:
        """Enter namespaces of its own: True inside, else runs this script there to its end.

        Needs root."""
        if os.environ.get(_INSIDE):
            return True
        command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c"]
        command += ['mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && exec "$0" "$@"']
        command += [sys.executable, sys.argv[0], *arguments]
        subprocess.run(command, env={**os.environ, _INSIDE: "1"}, check=True)
        return False

    def cut(self, host: int) -> None:
        """Drop all packets of a host silently."""
        for chain in ("INPUT", "OUTPUT"):
            self._inside(host, "iptables", "-I", chain, "-j", "DROP")

    def part(self, one: int, other: int) -> None:
        """Drop all packets between two hosts silently; all others reach both."""
        for host, peer in ((one, other), (other, one)):
            rule = ("INPUT", "-s", self.addresses[peer], "-j", "DROP")
            self._inside(host, "iptables", "-I", *rule)

    def mend(self, *hosts: int) -> None:
        for host in hosts:
            self._inside(host, "iptables", "-F")

    def before(self, host: int) -> tuple[str, ...]:
        """Prefix that runs a command on a host."""
        return ("ip", "netns", "exec", self._name(host))

    @staticmethod
    def _name(host: int) -> str:
        return f"host{host}"

    def _inside(self, host: int, *command: str) -> None:
        subprocess.run([*self.before(host), *command], check=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Scene:
    """One root, `workers` workers, each with its cache; a client. All end with the block."""

    def __init__(
        self, workers: int, *options: str, network: Network | None = None, tls: bool = False
    ) -> None:
        """options: of the root. tls: with certificates, and so an encrypted mesh."""
        self._folder = Path(tempfile.mkdtemp(prefix="hearth-survival-"))
        self._network = network
        self._certificates = self._folder / "certs" if tls else None
        if self._certificates is not None:
            pki.make(self._certificates, (), days=2)
        layout = os.environ.get(LAYOUT)
        self._options = (*options, "--parallel", layout) if layout else options
        self._starts = 0
        self._workers: dict[int, WorkerProcess] = {}
        self._ports: dict[int, str] = {}
        self._root: ServiceProcess | None = None
        self._client: Client | None = None
        self.count = workers

    def __enter__(self) -> Scene:
        try:
            for number in range(1, self.count + 1):
                self.start_worker(number)
            self.start_root()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._root is not None:
            print(self._root.log.read_text()[-4000:], file=sys.stderr)
        self._end()

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    @property
    def root(self) -> ServiceProcess:
        assert self._root is not None
        return self._root

    def worker(self, number: int) -> WorkerProcess:
        return self._workers[number]

    def start_worker(self, number: int) -> None:
        """Start it again at its address, with its cache."""
        old = self._workers.pop(number, None)
        if old is not None:
            old.end()
        listen = self._ports.get(number) or self._listen(number, "127.0.0.1:0", _WORKER_PORT)
        worker = WorkerProcess(
            *("--listen", listen, "--name", f"node{number}", *self._security("worker")),
            *("--cache-dir", str(self._folder / f"cache{number}")),
            log=self._log(f"worker{number}"),
            before=self._before(number),
        )
        self._workers[number] = worker
        self._ports[number] = worker.address

    def start_root(self) -> float:
        """The root, dead before, and its client; how long it took to serve."""
        if self._client is not None:
            self._client.close()
        if self._root is not None:
            self._root.end()
        began = time.monotonic()
        self._root = ServiceProcess(
            *("root", "--model", "demo", "--threads", "1", "--kv-type", "f32"),
            *("--listen", self._listen(0, "127.0.0.1:0", 7716), *self._security("root")),
            *("--context", "4000", *self._options),
            *("--workers", *(self._ports[n] for n in range(1, self.count + 1))),
            log=self._log("root"),
            before=self._before(0),
        )
        self._client = self.dial()
        return time.monotonic() - began

    def dial(self) -> Client:
        """Another client of the root."""
        tls = self._certificates / "client" if self._certificates is not None else None
        return Client(self.root.address, timeout=60, tls=tls)

    def kill(self, number: int) -> None:
        self._workers[number].kill()

    def leave(self, number: int) -> float:
        """SIGTERM; how long it took to end, which must be well."""
        began = time.monotonic()
        code = self._workers[number].end(60)
        assert code == 0, f"worker {number} ended with {code}"
        return time.monotonic() - began

    def stop(self, number: int) -> None:
        os.kill(self._workers[number].pid, signal.SIGSTOP)

    def go_on(self, number: int) -> None:
        os.kill(self._workers[number].pid, signal.SIGCONT)

    def tell(
        self, tokens: int, after: float = 0.0, hurt: Callable[[], None] = lambda: None
    ) -> Told:
        """A greedy story; `hurt` is called when a share of `after` of its tokens is there.

        Not after a time: no machine is too fast for that.
        """
        began = last = time.monotonic()
        longest = 0.0
        hurt_at: float | None = after * tokens
        with self.client.generate(
            PROMPT, max_tokens=tokens, ignore_eos=True, timeout=300
        ) as stream:
            for _ in stream:
                now = time.monotonic()
                longest = max(longest, now - last)
                last = now
                if hurt_at is not None and len(stream.token_ids) >= hurt_at:
                    hurt_at = None
                    hurt()
        assert hurt_at is None, f"the story had {len(stream.token_ids)} of {tokens} tokens"
        return Told(stream.token_ids, longest, time.monotonic() - began)

    def until_serving(self, workers: int, seconds: float = 60.0) -> root_pb2.ClusterStatus:
        """The status, once the cluster serves with so many workers."""
        for status in self.client.watch_cluster(timeout=seconds):
            serving = status.state == root_pb2.CLUSTER_STATE_SERVING
            if serving and len(status.nodes) == 1 + workers:
                return status
        raise AssertionError("the root stopped telling")

    def _listen(self, host: int, loopback: str, port: int) -> str:
        return loopback if self._network is None else f"{self._network.addresses[host]}:{port}"

    def _before(self, host: int) -> tuple[str, ...]:
        return () if self._network is None else self._network.before(host)

    def _security(self, role: str) -> tuple[str, ...]:
        if self._certificates is not None:
            return ("--tls", str(self._certificates / role))
        return () if self._network is None else ("--insecure",)

    def _log(self, name: str) -> Path:
        self._starts += 1
        return self._folder / f"{name}-{self._starts}.log"

    def _end(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._root is not None:
            self._root.end()
        for worker in self._workers.values():
            if worker.process.poll() is None:
                os.kill(worker.pid, signal.SIGCONT)
            worker.end()
        shutil.rmtree(self._folder, ignore_errors=True)
