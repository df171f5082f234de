"""Roles and revocation against running services: at once for new calls, soon for running ones."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from harness import ServiceProcess, WorkerProcess, hearth
from secured import PROMPT, ROOT_RPCS, Cluster, assert_refused, channel, scrape, wait_for_log

from hearth.client import (
    Client,
    HearthError,
    Insecure,
    PermissionDenied,
    Unauthenticated,
    Unreachable,
)
from hearth.common import pki
from hearth.common.certificates import Role
from hearth.v1 import root_pb2

# Bound of a wait; what is waited for takes two seconds.
SECONDS = 60


class Running:
    """A stream without an end, until it fails."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.error: HearthError | None = None
        self._watch = client.watch_cluster()
        next(self._watch)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for _ in self._watch:
                pass
        except HearthError as error:
            self.error = error

    def ended(self) -> HearthError:
        """The error that ended the running stream."""
        self._thread.join(SECONDS)
        assert self.error is not None
        return self.error


# API keys


def test_a_revoked_key_is_out_and_its_streams_end(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    pki.make(ours, [], 30)
    keys = ours / "api-keys"
    old, operator = (line.split()[1] for line in keys.read_text().splitlines())
    root = ServiceProcess(
        *("root", "--model", "demo", "--listen", "127.0.0.1:0", "--threads", "1"),
        *("--tls", str(ours / "root"), "--api-keys", str(keys)),
        log=tmp_path / "root.log",
    )
    try:
        trust = tmp_path / "trust"
        trust.mkdir()
        shutil.copy(ours / "ca.crt", trust)

        def admitted(key: str) -> bool:
            with Client(root.address, tls=trust, api_key=key) as client:
                try:
                    client.generate_text(PROMPT, max_tokens=1)
                except Unauthenticated:
                    return False
                return True

        new, other = "n" * 40, "o" * 40
        assert admitted(old)
        for text, ins, outs in (
            (f"# default {old}\n", [], [old]),
            (f"default {old}\n", [old], []),
            ("", [], [old]),
            (f"default {old}\n", [old], []),
            (None, [], [old]),
            (f"new {new}\nlaptop of anna {old}\n", [new], [old]),
            (f"new {new}\n", [new], [old]),
        ):
            if text is None:
                keys.unlink()
            else:
                keys.write_text(text)
            assert all(admitted(key) for key in ins), text
            assert not any(admitted(key) for key in outs), text
        wait_for_log(root, "line 2", "admits nobody")
        keys.write_text(f"new {new}\nother {other}\nboss {operator} operator\n")
        with (
            Client(root.address, tls=trust, api_key=new) as client,
            Client(root.address, tls=trust, api_key=other) as friend,
            Client(root.address, tls=trust, api_key=operator) as boss,
        ):
            watching, staying = Running(client), Running(friend)
            with pytest.raises(PermissionDenied) as caught:
                client.drain_worker("nobody")
            assert "key new" in str(caught.value)
            with pytest.raises(HearthError) as drained:
                boss.drain_worker("nobody")
            assert not isinstance(drained.value, PermissionDenied)
            keys.write_text(f"other {other}\n")
            error = watching.ended()
            assert isinstance(error, Unauthenticated)
            assert "the API key of 'new' was revoked" in str(error)
            assert staying.error is None
    finally:
        root.end()


def test_generation_of_a_revoked_key_ends(tmp_path: Path) -> None:
    """Also between two generations: each is a new call."""
    ours = tmp_path / "ours"
    pki.make(ours, [], 30)
    keys = ours / "api-keys"
    key, other = (line.split()[1] for line in keys.read_text().splitlines())
    root = ServiceProcess(
        *("root", "--model", "demo", "--listen", "127.0.0.1:0", "--threads", "1"),
        *("--tls", str(ours / "root"), "--api-keys", str(keys)),
        log=tmp_path / "root.log",
    )
    try:
        with Client(root.address, tls=ours / "client", api_key=key) as client:
            done = threading.Event()
            errors: list[HearthError] = []

            def generate() -> None:
                try:
                    while not done.is_set():
                        client.generate_text(PROMPT, max_tokens=400, ignore_eos=True)
                except HearthError as error:
                    errors.append(error)

            thread = threading.Thread(target=generate, daemon=True)
            thread.start()
            keys.write_text(f"other {other}\n")
            thread.join(SECONDS)
            done.set()
            assert isinstance(errors[0], Unauthenticated)
    finally:
        root.end()


# Certificates


@pytest.mark.parametrize("role", ["monitor", "worker"])
def test_other_roles_call_nothing_at_the_root(cluster: Cluster, role: str) -> None:
    refused = channel(cluster.root.address, cluster.ours, cluster.ours / role)
    if role == "worker":  # a certificate for servers only ends the handshake
        assert_refused(refused, ROOT_RPCS, grpc.StatusCode.UNAVAILABLE)
        return
    assert_refused(refused, ROOT_RPCS, grpc.StatusCode.UNAUTHENTICATED)
    wait_for_log(cluster.root, "refused 127.0.0.1:", "a certificate of hearth-monitor")


def test_draining_is_for_operators(cluster: Cluster) -> None:
    worker = cluster.workers[0].address
    with Client(cluster.root.address, tls=cluster.ours / "client") as client:
        for undo in (False, True):
            with pytest.raises(PermissionDenied) as caught:
                client.drain_worker(worker, undo=undo)
            assert "operator" in str(caught.value)
        assert client.cluster().state == root_pb2.CLUSTER_STATE_SERVING
    ran = hearth(
        *("cluster", "drain", worker, "--root", cluster.root.address),
        *("--tls", str(cluster.ours / "client")),
    )
    assert ran.returncode == 1
    assert "DIR/operator" in ran.stderr
    with Client(cluster.root.address, tls=cluster.ours / "operator") as operator:
        operator.drain_worker(worker, timeout=SECONDS)
        operator.drain_worker(worker, undo=True, timeout=SECONDS)


def test_a_monitor_reads_metrics(cluster: Cluster) -> None:
    for name in ("root", "worker"):
        assert "hearth_build_info" in scrape(cluster, name, cluster.ours / "monitor")


def test_a_revoked_certificate_is_out_and_its_streams_end(cluster: Cluster) -> None:
    for name, role in (("anna", Role.CLIENT), ("spy", Role.MONITOR)):
        pki.add(cluster.ours, name, role, [], 30)
    # What the holder of a lost machine has.
    lost = {
        name: shutil.copytree(cluster.ours / name, cluster.ours.parent / name)
        for name in ("anna", "spy")
    }
    assert "hearth_build_info" in scrape(cluster, "worker", lost["spy"])
    with (
        Client(cluster.root.address, tls=lost["anna"]) as client,
        Client(cluster.root.address, tls=cluster.ours / "client") as friend,
    ):
        watching, staying = Running(client), Running(friend)
        ran = hearth("certs", "revoke", str(cluster.ours), "anna")
        assert ran.returncode == 0, ran.stderr
        assert "crl.pem" in ran.stderr
        with pytest.raises(Unauthenticated) as caught:
            client.model()
        assert "revoked" in str(caught.value)
        assert "revoked" in str(watching.ended())
        assert staying.error is None
        friend.model()
    assert hearth("certs", "revoke", str(cluster.ours), "spy").returncode == 0
    for name in ("root", "worker"):
        with pytest.raises(OSError):
            scrape(cluster, name, lost["spy"])
        assert "hearth_build_info" in scrape(cluster, name, cluster.ours / "monitor")


def test_a_worker_whose_certificate_is_revoked_is_let_go(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    pki.make(ours, [], 30)
    pki.add(ours, "pi", Role.WORKER, [], 30)
    lost = Path(shutil.copytree(ours / "pi", tmp_path / "pi"))
    worker = WorkerProcess("--tls", str(lost), log=tmp_path / "worker.log")
    root = ServiceProcess(
        *("root", "--model", "demo", "--listen", "127.0.0.1:0", "--threads", "1"),
        *("--workers", worker.address, "--tls", str(ours / "root"), "--wait-seconds", "1"),
        *("--min-workers", "0"),
        log=tmp_path / "root.log",
    )
    try:
        with Client(root.address, tls=ours / "client") as client:
            text = client.generate_text(PROMPT, max_tokens=16)
            pki.revoke(ours, "pi")

            def alone(status: root_pb2.ClusterStatus) -> bool:
                serves = status.state == root_pb2.CLUSTER_STATE_SERVING
                return serves and len(status.nodes) == 1

            wait_until(client, alone)
            (peer,) = client.cluster().peers
            assert "revoked" in peer.reason
            assert client.generate_text(PROMPT, max_tokens=16) == text
            # With a new certificate it is in again.
            pki.add(ours, "pi", Role.WORKER, [], 30)
            for name in ("tls.key", "tls.crt"):
                shutil.copy(ours / "pi" / name, lost)
            wait_until(client, lambda status: len(status.nodes) == 2)
    finally:
        root.end()
        worker.end()


def wait_until(client: Client, happened: Callable[[root_pb2.ClusterStatus], bool]) -> None:
    for status in client.watch_cluster(timeout=SECONDS):
        if happened(status):
            return
    raise AssertionError("the root ended the watch")


# Clients


def test_the_sdk_sends_no_key_in_plaintext() -> None:
    for address in ("203.0.113.1:7716", "nas:7716", "dns:///nas:7716", "ipv4:203.0.113.1:7716"):
        with pytest.raises(Insecure):
            Client(address, api_key="k" * 16)
        Client(address, api_key="k" * 16, insecure=True).close()
        Client(address).close()
    for address in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/root"):
        with Client(address, api_key="k" * 16, connect_timeout=1) as client:
            with pytest.raises(Unreachable):
                client.model()
