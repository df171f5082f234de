"""The chart's own commands, with the certificates that it made, as processes.

They serve, they answer the chart's probes, and a bare TCP connect to any port, as load balancers
and scanners do, ends nothing.
"""

from __future__ import annotations

import json
import socket
import struct
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import pytest
from harness import ServiceProcess, free_port, hearth

pytest.importorskip("yaml", reason="the chart's tests need make chart-test")

from chart import Installed, containers, environ_of, main_container, mounted, ports, secret

_CONNECTS = 100
# HEARTH_NAME is a pod's name, which only a cluster knows.
_NAME = "from-the-cluster"


@dataclass
class Running:
    """The chart's pods as processes of this machine; `here` is where each port of a pod is."""

    installed: Installed
    folder: Path
    here: dict[tuple[str, int], int] = field(default_factory=dict)
    processes: dict[str, ServiceProcess] = field(default_factory=dict)

    def arguments(self, role: str) -> list[str]:
        """A container's arguments, with this machine's addresses and folders instead of a pod's."""
        return [self._moved(role, text) for text in main_container(self._pod(role))["args"]]

    def environ(self, role: str) -> dict[str, str]:
        """A container's HEARTH_..., moved in the same way."""
        found = environ_of(main_container(self._pod(role)))
        return {key: self._moved(role, text) for key, text in found.items()}

    def port(self, role: str, port: int) -> int:
        return self.here.setdefault((role, port), free_port())

    def _pod(self, role: str) -> dict[str, object]:
        return self.installed.pods()[role]

    def _moved(self, role: str, text: str) -> str:
        names = {"0.0.0.0": role, "hearth-root": "root", "hearth-worker": "worker"}
        host, _, port = text.rpartition(":")
        if host in names:
            return f"127.0.0.1:{self.port(names[host], int(port))}"
        if text.isdigit() and int(text) in _own_ports(self._pod(role)):
            return str(self.port(role, int(text)))
        return str(self.folder / role) + text if text.startswith("/") else text

    def lay_out_secrets(self, role: str) -> None:
        """Writes the files that kubelet would mount."""
        at = environ_of(main_container(self._pod(role)))["HEARTH_TLS"]
        folder = Path(self._moved(role, at))
        folder.mkdir(parents=True)
        volume = mounted(self._pod(role), at)["projected"]
        for source in volume["sources"]:
            if source["secret"].get("optional"):
                continue  # nothing is revoked
            files = secret(self.installed, source["secret"]["name"])
            for item in source["secret"]["items"]:
                (folder / item["path"]).write_bytes(files[item["key"]])
                (folder / item["path"]).chmod(volume["defaultMode"])


def _own_ports(pod: dict[str, object]) -> set[int]:
    return {port["containerPort"] for c in containers(pod) for port in c.get("ports", [])}


@pytest.fixture(scope="module")
def running(
    installed: Callable[[str], Installed], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One worker and the root of the default values."""
    made = Running(installed("defaults"), tmp_path_factory.mktemp("pods"))
    for role in ("worker", "root", "test"):
        made.lay_out_secrets(role)
    try:
        for role in ("worker", "root"):
            arguments = [*made.arguments(role), "--threads", "1"]
            log = made.folder / f"{role}.log"
            environ = made.environ(role)
            made.processes[role] = ServiceProcess(*arguments, log=log, environ=environ)
        yield made
    finally:
        for process in made.processes.values():
            process.end()


def _text(running: Running, *more: str) -> str:
    """Output of the pod of `helm test`."""
    ran = hearth(*running.arguments("test"), *more, environ=running.environ("test"))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_client_is_answered(running: Running) -> None:
    assert _text(running).startswith("Once upon a time")
    # By both: the name that lists the workers was looked up, and the certificates were taken.
    address = running.arguments("test")[2]
    ran = hearth("cluster", "--json", "--root", address, environ=running.environ("test"))
    assert ran.returncode == 0, ran.stderr
    peers = json.loads(ran.stdout)["peers"]
    assert [c["name"] for c in peers if c["state"] == "PEER_STATE_IN"] == [_NAME]


def test_a_client_without_the_certificate_is_not(running: Running) -> None:
    ran = hearth(*running.arguments("test"))
    assert ran.returncode == 1
    assert "--tls" in ran.stderr


@pytest.mark.parametrize("role", ["root", "worker"])
@pytest.mark.parametrize("kind", ["startup", "liveness", "readiness"])
def test_its_probes_are_answered(running: Running, role: str, kind: str) -> None:
    pod = running.installed.pods()[role]
    probe = main_container(pod)[f"{kind}Probe"]["httpGet"]
    port = running.port(role, ports(pod)[probe["port"]])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{probe['path']}", timeout=10) as answer:
        assert answer.status == HTTPStatus.OK


def test_a_probe_by_bare_connect_kills_nothing(running: Running) -> None:
    long = ("--max-tokens", "150")
    before = _text(running, *long)
    addresses = {
        ("127.0.0.1", running.port(role, port))
        for role in running.processes
        for port in _own_ports(running.installed.pods()[role])
    }
    assert len(addresses) == 8
    with ThreadPoolExecutor() as pool:
        # One answer is under way meanwhile, another is asked for after.
        meanwhile = pool.submit(_text, running, *long)
        for address in sorted(addresses):
            for i in range(_CONNECTS):
                with socket.create_connection(address, timeout=10) as connection:
                    if i % 2:  # closed by a reset, as a scanner does
                        linger = struct.pack("ii", 1, 0)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        assert meanwhile.result() == before
    assert _text(running, *long) == before
    for role, process in running.processes.items():
        assert process.process.poll() is None
        assert "Traceback" not in process.log.read_text(), role
        for kind in ("liveness", "readiness"):
            test_its_probes_are_answered(running, role, kind)
