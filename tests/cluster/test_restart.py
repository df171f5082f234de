"""A start whose workers had the weights before sends nothing, or only what is lacking.

Whole processes, as they are started at home; test_weight_stream.py has the stream alone, cut in the
middle of a slice.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import ServiceProcess, begin, free_port

from hearth.client import Client
from hearth.common.errors import HearthError
from hearth.converter import open_model
from hearth.root.cluster.cluster import Cluster
from hearth.root.cluster.streaming import LoadEvent
from hearth.root.settings import ClusterSettings
from hearth.v1 import root_pb2

Start = Callable[..., ServiceProcess]


def metric(address: str, name: str) -> float:
    """The value of a metric line, "name{label="value"}", as a service tells it over HTTP."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
    raise AssertionError(f"no metric {name}")


def generated(root: ServiceProcess) -> list[int]:
    with Client(root.address) as client:
        with client.generate("Once", max_tokens=12, ignore_eos=True, timeout=60) as stream:
            for _ in stream:
                pass
    return stream.token_ids


def nodes(root: ServiceProcess) -> list[root_pb2.ClusterNode]:
    with Client(root.address) as client:
        return list(client.cluster().nodes)


def test_a_second_start_sends_no_weights(
    start_worker: Start, start_root: Start, tmp_path: Path
) -> None:
    """Root and workers start again, from the caches that the first run left."""
    texts = []
    for run in ("cold", "warm"):
        metrics = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        workers = [
            start_worker("--cache-dir", str(tmp_path / f"cache{n}"), "--metrics", metrics[n])
            for n in (1, 2)
        ]
        root = start_root(
            *("--model", "demo", "--metrics", metrics[0]),
            *("--workers", *(worker.address for worker in workers)),
        )
        texts.append(generated(root))
        total = 0
        for address, node in zip(metrics[1:], nodes(root)[1:], strict=True):
            size = node.weight_bytes
            total += size
            assert size > 0
            network, cache = (size, 0) if run == "cold" else (0, size)
            assert node.weight_bytes_loaded == size
            assert node.weight_bytes_from_network == network
            assert node.weight_bytes_from_cache == cache
            assert metric(address, 'hearth_shard_weight_bytes_total{source="network"}') == network
            assert metric(address, 'hearth_shard_weight_bytes_total{source="cache"}') == cache
        sent = metric(metrics[0], 'hearth_weight_bytes_total{source="network"}')
        assert sent == (total if run == "cold" else 0)
        for service in (root, *workers):
            assert service.end() == 0
    assert texts[0] == texts[1]


def test_other_shares_send_only_what_changed(start_worker: Start, tmp_path: Path) -> None:
    """A cut that a worker holds already does not travel again, whatever else the new plan has."""
    worker = start_worker("--cache-dir", str(tmp_path / "cache"))
    sent = [network_bytes("demo", worker, shares) for shares in ((1, 1), (3, 1), (1, 1), (3, 1))]
    assert sent[0] > 0
    # The norms are whole on every node, so they are the same slices in every plan.
    assert 0 < sent[1] < sent[0]
    assert sent[2:] == [0, 0]


def network_bytes(model_name: str, worker: ServiceProcess, shares: tuple[int, int]) -> int:
    settings = ClusterSettings((worker.address,), shares=shares, threads=1, context=64)
    with open_model(model_name) as model:
        cluster = Cluster(model, settings)
        try:
            cluster.form()
            return int(cluster.status().nodes[1].weight_bytes_from_network)
        finally:
            cluster.close()


def test_a_worker_killed_while_loading_resumes(start_worker: Start, tmp_path: Path) -> None:
    """Chunks acknowledged before the worker died are not sent again."""
    cache = ("--cache-dir", str(tmp_path / "cache"))
    worker = start_worker(*cache)
    acknowledged = 0

    def kill(address: str, event: LoadEvent) -> None:
        nonlocal acknowledged
        if address == worker.address and worker.process.poll() is None:
            acknowledged = event.network_bytes
            if event.network_bytes > event.total_bytes // 2:
                worker.kill()

    # 330 MiB are the worker's.
    settings = ClusterSettings((worker.address,), threads=1, context=64)
    with open_model("random:tinyllama-1.1b", "q40") as model:
        cluster = Cluster(model, settings, on_load=kill)
        try:
            with pytest.raises(HearthError, match=worker.address):
                cluster.form()
            total = cluster.plan.nodes[1].weight_bytes
            assert total // 2 < acknowledged < total
            start_worker(*cache, "--listen", worker.address)
            cluster.form()
            node = cluster.status().nodes[1]
            print(f"{acknowledged} of {total} bytes acknowledged, {node.weight_bytes_from_network}")
            assert 0 < node.weight_bytes_from_network <= total - acknowledged
            assert node.weight_bytes_from_network + node.weight_bytes_from_cache == total
        finally:
            cluster.close()


def test_a_root_killed_while_loading_resumes(
    start_worker: Start, start_root: Start, tmp_path: Path
) -> None:
    """The worker's lease ends with its grace period; the next root sends only what is lacking."""
    worker = start_worker("--cache-dir", str(tmp_path / "cache"), "--lease-grace", "1")
    model = ("--model", "random:tinyllama-1.1b", "--weights", "q40", "--context", "64")
    first = begin("root", "--listen", "127.0.0.1:0", *model, "--workers", worker.address)
    try:
        deadline = time.monotonic() + 60
        held = 0
        while held < 64 << 20 and time.monotonic() < deadline:
            held = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.slice"))
            time.sleep(0.01)
    finally:
        first.kill()
        first.communicate()
    root = start_root(*model, "--workers", worker.address)
    node = nodes(root)[1]
    assert node.weight_bytes_from_cache > 0
    assert node.weight_bytes_from_network + node.weight_bytes_from_cache == node.weight_bytes
