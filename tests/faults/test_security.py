"""A secured cluster as those meet it who have no business there, and then as its own clients do.

Every RPC that the contract has is tried, from its descriptors: a new one is covered by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness import Plan, ServiceProcess, WorkerProcess, hearth
from secured import (
    GENERATE,
    PROMPT,
    ROOT_RPCS,
    SECONDS,
    STEPS,
    WORKER_RPCS,
    Cluster,
    assert_refused,
    channel,
    outcome,
    scrape,
    wait_for_log,
)

from hearth.client import AsyncClient, Client, Unauthenticated, Unreachable
from hearth.common.channels import PROTOCOL_VERSION, dial
from hearth.common.errors import HearthError
from hearth.common.mesh_handshake import HELLO_BYTES, Handshake
from hearth.common.security import Security
from hearth.root.cluster.streaming import stream_weights
from hearth.v1 import worker_pb2, worker_pb2_grpc


@pytest.fixture(scope="module")
def keyed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A root alone whose clients have API keys instead of certificates."""
    root = ServiceProcess(
        *("root", "--model", "demo", "--listen", "127.0.0.1:0", "--threads", "1"),
        *("--tls", str(cluster.ours / "root"), "--api-keys", str(cluster.ours / "api-keys")),
        log=tmp_path_factory.mktemp("keyed") / "root.log",
    )
    yield root
    root.end()


Intruder = Callable[[Cluster, str], grpc.Channel]

# Who has no certificate that counts; they get no further than the handshake.
WITHOUT_CERTIFICATE: dict[str, Intruder] = {
    "plaintext": lambda c, address: channel(address, None),
    "no certificate": lambda c, address: channel(address, c.ours),
    "another cluster's certificate": lambda c, a: channel(a, c.ours, c.theirs / "root"),
    "another cluster": lambda c, address: channel(address, c.theirs, c.theirs / "root"),
}
# Callers with a certificate that are not the cluster's root.
WITHOUT_TOKEN: dict[str, Intruder] = {
    "a client": lambda c, address: channel(address, c.ours, c.ours / "client"),
    "a client with the token": lambda c, address: channel(
        address, c.ours, c.ours / "client", Security(c.ours / "root").token
    ),
    "another cluster's token": lambda c, address: channel(
        address, c.ours, c.ours / "root", Security(c.theirs / "root").token
    ),
}


@pytest.mark.parametrize("who", WITHOUT_CERTIFICATE)
def test_without_the_certificate_no_call_is_heard(cluster: Cluster, who: str) -> None:
    intruder = WITHOUT_CERTIFICATE[who]
    for process, methods in ((cluster.workers[0], WORKER_RPCS), (cluster.root, ROOT_RPCS)):
        refused = intruder(cluster, process.address)
        assert_refused(refused, methods, grpc.StatusCode.UNAVAILABLE)
        if who == "plaintext":
            wait_for_log(process, "refused 127.0.0.1:", "TLS")
        else:
            wait_for_log(process, "refused 127.0.0.1:", "no certificate of this cluster's CA")


@pytest.mark.parametrize("who", WITHOUT_TOKEN)
def test_without_the_token_no_call_is_heard(cluster: Cluster, who: str) -> None:
    worker = cluster.workers[0]
    refused = WITHOUT_TOKEN[who](cluster, worker.address)
    assert_refused(refused, WORKER_RPCS, grpc.StatusCode.UNAUTHENTICATED)
    said = {
        "a client": "no join token",
        "a client with the token": "a certificate of hearth-client, not of hearth-root",
        "another cluster's token": "a wrong join token",
    }[who]
    wait_for_log(worker, "refused 127.0.0.1:", "at the worker's port", said)


@pytest.mark.parametrize(
    ("key", "said"), [(None, "no API key"), ("k" * 32, "a wrong API key")], ids=["none", "wrong"]
)
def test_without_an_api_key_no_call_is_heard(
    cluster: Cluster, keyed: ServiceProcess, key: str | None, said: str
) -> None:
    # Not even with a certificate of this cluster.
    refused = channel(keyed.address, cluster.ours, cluster.ours / "client", key)
    assert_refused(refused, ROOT_RPCS, grpc.StatusCode.UNAUTHENTICATED)
    wait_for_log(keyed, "refused 127.0.0.1:", "at the root's port", said)


def test_with_what_it_takes_every_call_is_heard(cluster: Cluster, keyed: ServiceProcess) -> None:
    """So that the tests above cannot pass because nothing works."""
    operator = (cluster.ours / "api-keys").read_text().splitlines()[1].split()[1]
    ours = cluster.ours
    token = Security(ours / "root").token
    friends = [
        (channel(cluster.workers[0].address, ours, ours / "root", token), WORKER_RPCS),
        (channel(cluster.root.address, ours, ours / "operator"), ROOT_RPCS),
        (channel(keyed.address, ours, None, operator), ROOT_RPCS),
    ]
    for friend, methods in friends:
        with friend:
            for method in methods:
                error: Any = outcome(friend, method)
                code = grpc.StatusCode.OK if error is None else error.code()
                # Empty messages are wrong in their own ways, which the services tell.
                assert code not in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.UNAUTHENTICATED,
                    grpc.StatusCode.PERMISSION_DENIED,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ), (method.full_name, error.details())


def test_weights_of_a_stranger_are_not_taken(cluster: Cluster) -> None:
    worker = cluster.workers[0]
    plan = Plan(root_id="stranger", epoch=99)
    with WITHOUT_TOKEN["another cluster's token"](cluster, worker.address) as intruder:
        with pytest.raises(HearthError) as caught:
            stream_weights(intruder, plan.begin, plan.read, lambda event: None, worker="w")
    assert caught.value.reason == "UNAUTHENTICATED"
    assert plan.reads == []
    with dial(worker.address, Security(cluster.ours / "root")) as friend:
        request = worker_pb2.DescribeRequest(protocol_version=PROTOCOL_VERSION)
        held = worker_pb2_grpc.WorkerServiceStub(friend).Describe(request, timeout=SECONDS)
    assert held.held_by not in ("", "stranger")


def test_a_stranger_at_the_mesh_port_is_refused(cluster: Cluster) -> None:
    host, _, port = cluster.mesh.rpartition(":")
    for i, hello in enumerate(
        (Handshake(0, 1, bytes(32), bytes(32)).hello(bytes(32)), os.urandom(HELLO_BYTES))
    ):
        where = (f"127.0.0.{20 + i}", 0)
        with socket.create_connection((host, int(port)), SECONDS, where) as stranger:
            stranger.recv(32)
            stranger.sendall(hello)
            assert stranger.recv(32) == b""  # no proof comes back
            number = stranger.getsockname()[1]
        line = wait_for_log(cluster.workers[0], f"refused {where[0]}:{number} at the mesh port")
        assert ("no mesh is being opened" in line) == (i == 0)


@pytest.mark.parametrize("name", ["root", "worker"])
def test_metrics_are_for_those_with_a_certificate(cluster: Cluster, name: str) -> None:
    process = cluster.root if name == "root" else cluster.workers[0]
    assert "hearth_build_info" in scrape(cluster, name, cluster.ours / "client")
    for own, scheme in ((None, "https"), (cluster.theirs / "client", "https"), (None, "http")):
        with pytest.raises(OSError):
            scrape(cluster, name, own, scheme)
    for said in ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED", "not speak TLS"):
        wait_for_log(process, "refused 127.0.0.1:", "at the metrics port", said)


# Those who belong there.


def test_the_demo_text_over_tls(cluster: Cluster, expected: str) -> None:
    tls = ("--tls", str(cluster.ours / "client"))
    ran = hearth(*GENERATE, "--root", cluster.root.address, *tls, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["text"] == expected
    ran = hearth("cluster", "--root", cluster.root.address, *tls)
    assert ran.returncode == 0, ran.stderr
    # Each end says what it lacks.
    ran = hearth("cluster", "--root", cluster.root.address)
    assert ran.returncode == 1
    assert "--tls" in ran.stderr


def test_the_demo_text_over_tls_with_the_grpc_lane(
    cluster: Cluster, tmp_path: Path, expected: str
) -> None:
    """The command as its own root, with workers of its cluster."""
    tls = str(cluster.ours / "worker")
    workers = [WorkerProcess("--tls", tls, log=tmp_path / f"{i}.log") for i in range(2)]
    try:
        ran = hearth(
            *(*GENERATE, "--model", "demo", "--lane", "grpc", "--threads", "1", "--json"),
            *("--workers", *(w.address for w in workers), "--tls", str(cluster.ours / "root")),
        )
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["text"] == expected
        assert not any("refused" in w.log.read_text() for w in workers)
    finally:
        for worker in workers:
            worker.end()


def test_the_sdk_with_an_api_key(cluster: Cluster, keyed: ServiceProcess) -> None:
    key = (cluster.ours / "api-keys").read_text().split()[1]
    # The CA's certificate is all the trust a client with a key needs.
    (trust := keyed.log.parent / "trust").mkdir(exist_ok=True)
    (trust / "ca.crt").write_bytes((cluster.ours / "ca.crt").read_bytes())
    with Client(keyed.address, tls=trust, api_key=key) as client:
        text = client.generate_text(PROMPT, max_tokens=STEPS, timeout=SECONDS)
        assert text
        assert next(client.watch_cluster(timeout=SECONDS)).epoch

    async def same() -> str:
        async with AsyncClient(keyed.address, tls=trust, api_key=key) as client:
            await client.model()
            return await client.generate_text(PROMPT, max_tokens=STEPS, timeout=SECONDS)

    assert asyncio.run(same()) == text
    with Client(keyed.address, tls=trust, api_key="k" * 32) as client:
        with pytest.raises(Unauthenticated) as caught:
            client.model()
    assert "a wrong API key" in str(caught.value)
    with Client(keyed.address, api_key=key) as client:
        with pytest.raises(Unreachable) as unreachable:
            client.model()
    assert "--tls" in str(unreachable.value)
    with Client(keyed.address, tls=cluster.theirs / "client", api_key=key) as client:
        with pytest.raises(Unreachable):  # it would not tell the key to another cluster
            client.model()


def test_a_worker_is_no_root_to_a_client(cluster: Cluster) -> None:
    """A certificate says what its holder is: a worker cannot take in clients' prompts."""
    address = cluster.workers[0].address
    with Client(address, tls=cluster.ours / "client") as client:
        with pytest.raises(Unreachable):
            client.model()
