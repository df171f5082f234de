"""`make floods FLOOD_SECONDS=60`: every flood at every port, in a memory cgroup of 1 GiB.

    python tests/survival/floods.py [SECONDS] [PORT ...]

Attackers are processes of their own. They have no credential, except at `root-mtls`, where they
have a client's certificate. Meanwhile one own client makes new connections. Fails when the service
ends, or when a request of the own client fails or takes more than 2 s. The own client shares its
host with the attackers, which is the worst case for limits by host. Needs root, for the cgroup.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
from harness import ServiceProcess, WorkerProcess, free_port, hearth

from hearth.client import Client
from hearth.common.channels import PROTOCOL_VERSION, dial
from hearth.common.security import Security
from hearth.v1 import worker_pb2, worker_pb2_grpc

LIMIT = 1 << 30
ATTACKERS = 8
MOST_SECONDS = 2.0
PORTS = (
    "root-plain",
    "root-tls-keys",
    "root-mtls",
    "worker-plain",
    "worker-mtls",
    "health",
    "metrics-plain",
    "metrics-mtls",
    "mesh",
    "http-plain",
    "http-tls-keys",
)
ROOT, WORKER = b"/hearth.v1.RootService/GetModel", b"/hearth.v1.WorkerService/Describe"


@contextmanager
def cgroup() -> Iterator[Path]:
    """A cgroup of LIMIT bytes, of version 2 or 1; removed after."""
    v1 = Path("/sys/fs/cgroup/memory")
    top = v1 if v1.is_dir() else Path("/sys/fs/cgroup")
    folder = top / f"hearth-floods-{os.getpid()}"
    folder.mkdir()
    name = "memory.limit_in_bytes" if v1.is_dir() else "memory.max"
    (folder / name).write_text(str(LIMIT))
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 5
        while folder.exists() and time.monotonic() < deadline:
            with suppress(OSError):  # its last process is still ending
                folder.rmdir()
            time.sleep(0.05)


def peak(folder: Path) -> int:
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if (folder / name).exists():
            return int((folder / name).read_text())
    return 0


def attackers(target: Target, seconds: float) -> list[subprocess.Popen[bytes]]:
    """Attackers of a port, each a process without gRPC."""
    script = Path(__file__).resolve().parents[1] / "http2.py"
    given = [target.kind, target.address, target.path.decode(), target.ca or "", target.own or ""]
    return [
        subprocess.Popen([sys.executable, script, *map(str, given), str(seconds), str(i)])
        for i in range(ATTACKERS)
    ]


class Target:
    """A service in the cgroup, one of its ports, and an own client of that port."""

    def __init__(self, name: str, stack: ExitStack, folder: Path, group: Path) -> None:
        self.name, self.kind, self.path = name, "http2", ROOT
        self.ca: Path | None = None
        self.own: Path | None = None
        certs = folder / "certs"
        if not certs.exists():
            assert hearth("certs", "init", str(certs)).returncode == 0
        inside = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$0" "$@"')
        log = folder / f"{name}.log"
        extra = f"127.0.0.1:{free_port()}"
        service, _, how = name.partition("-")
        mtls = how in ("mtls", "tls-keys")
        client: dict[str, object] = {}
        options: list[str] = []
        if service in ("worker", "mesh"):
            if mtls:
                options += ["--tls", str(certs / "worker")]
            if service == "mesh":
                options += ["--mesh-port", extra.rpartition(":")[2]]
            self.process: ServiceProcess = WorkerProcess(*options, log=log, before=inside)
        else:
            options = ["--model", "demo", "--listen", "127.0.0.1:0", "--threads", "1"]
            if mtls:
                options += ["--tls", str(certs / "root")]
                client["tls"] = certs / "client"
            if how == "tls-keys":
                options += ["--api-keys", str(certs / "api-keys")]
                client["api_key"] = (certs / "api-keys").read_text().split()[1]
            if service in ("health", "metrics", "http"):
                options += [f"--{service}", extra]
            self.process = ServiceProcess("root", *options, log=log, before=inside)
        stack.callback(self.process.end)
        self.address = self.process.address
        if mtls:
            self.ca = certs / "ca.crt"
        if name == "root-mtls":
            self.own = certs / "client"
        if service in ("health", "metrics", "mesh", "http"):
            self.kind, self.address = service, extra
        if service in ("worker", "mesh"):
            self.path = WORKER
            security = Security(certs / "root") if mtls else None
            self.ask: Callable[[], object] = lambda: describe(self.process.address, security)
        elif service == "health":
            url = f"http://{extra}/readyz"
            self.ask = lambda: urllib.request.urlopen(url, timeout=5).read()
        elif service == "http":
            key = client.get("api_key")
            self.ask = lambda: complete(extra, self.ca, str(key or ""))
        elif service == "metrics":
            own = certs / "client" if mtls else None
            self.ask = lambda: scrape(extra, self.ca, own)
        else:
            self.ask = lambda: generate(self.process.address, client)


def describe(address: str, security: Security | None) -> None:
    """Ask a worker as a root does: again with a new connection where one broke."""
    end = time.monotonic() + MOST_SECONDS
    while True:
        try:
            with dial(address, security) as channel:
                request = worker_pb2.DescribeRequest(protocol_version=PROTOCOL_VERSION)
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                stub.Describe(request, timeout=5, wait_for_ready=True)
                return
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                raise


def scrape(address: str, ca: Path | None, own: Path | None) -> None:
    if ca is None or own is None:
        urllib.request.urlopen(f"http://{address}/metrics", timeout=5).read()
        return
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    context.load_cert_chain(own / "tls.crt", own / "tls.key")
    urllib.request.urlopen(f"https://{address}/metrics", timeout=5, context=context).read()


def complete(address: str, ca: Path | None, key: str) -> None:
    context = ssl.create_default_context(cafile=str(ca)) if ca else None
    if context is not None:
        context.check_hostname = False
    url = f"{'https' if ca else 'http'}://{address}/v1/completions"
    body = json.dumps({"prompt": "Once", "max_tokens": 2}).encode()
    request = urllib.request.Request(url, body, {"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=5, context=context) as answer:
        assert json.load(answer)["choices"][0]["text"]


def generate(address: str, client: dict[str, object]) -> None:
    with Client(address, connect_timeout=5, **client) as own:  # type: ignore[arg-type]
        assert own.generate_text("Once", max_tokens=2, timeout=5)


def flood(name: str, seconds: float, folder: Path) -> bool:
    """Floods one port; prints a line; True if it held."""
    with cgroup() as group, ExitStack() as stack:
        target = Target(name, stack, folder, group)
        target.ask()
        end = time.monotonic() + seconds
        running = attackers(target, seconds)
        took: list[float] = []
        failed: list[str] = []
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                target.ask()
                took.append(time.monotonic() - begun)
            except Exception as error:
                failed.append(f"{type(error).__name__}: {error}"[:120])
            time.sleep(0.1)
        for each in running:
            each.wait(30)
        alive = target.process.process.poll() is None
        lines = len(target.process.log.read_text().splitlines())
        took.sort()
        slow = sum(each > MOST_SECONDS for each in took)
        most = max(took, default=0.0)
        held = alive and not failed and not slow
        print(
            f"{name:14} {'held' if held else 'FAILED':7} alive {alive}, "
            f"peak {peak(group) >> 20} MiB, "
            f"{len(took)} requests, median {took[len(took) // 2] if took else 0:.3f} s, "
            f"most {most:.2f} s, {slow} slow, {len(failed)} failed {failed[:2]}, {lines} log lines",
            flush=True,
        )
        return held


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    names = sys.argv[2:] or PORTS
    with tempfile.TemporaryDirectory() as folder:
        held = [flood(name, seconds, Path(folder)) for name in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
