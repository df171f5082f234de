"""Weights that change on disk, under warm caches and under a running root: never a mixture.

The other model has the names, shapes, sizes and times of the first; only its numbers differ. The
right text of each is that of one process without workers or caches.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness import ServiceProcess, hearth

from hearth.client import Client
from hearth.converter.packaged import demo_directory
from hearth.v1 import root_pb2

Start = Callable[..., ServiceProcess]
TOKENS = 24
SECONDS = 60.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model; `put` changes it."""
    return Path(shutil.copytree(demo_directory(), tmp_path / "model"))


@pytest.fixture
def contents(model: Path) -> tuple[bytes, bytes]:
    """The demo's weights, and those of another model with the same header."""
    one = (model / "model.safetensors").read_bytes()
    two = bytearray(one)
    length = int.from_bytes(one[:8], "little")
    for name, entry in json.loads(one[8 : 8 + length]).items():
        if name.endswith("down_proj.weight"):
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            values = np.frombuffer(one[begin:end], "<f2") * np.float16(0.3)
            two[begin:end] = values.astype("<f2").tobytes()
    return one, bytes(two)


def put(model: Path, content: bytes) -> None:
    """Writes the weights in place, as cp does, with the same time whatever they are."""
    with (model / "model.safetensors").open("r+b") as stream:
        stream.write(content)
    os.utime(model / "model.safetensors", (1, 1))


def alone(model: Path) -> str:
    """The text of the model in one process."""
    ran = hearth(
        *("generate", "--model", str(model), "--prompt", "Once", "--max-tokens", str(TOKENS)),
        *("--threads", "1", "--json"),
    )
    assert ran.returncode == 0, ran.stderr
    return str(json.loads(ran.stdout)["text"])


def text(client: Client) -> str:
    with client.generate("Once", max_tokens=TOKENS, timeout=SECONDS) as stream:
        return "".join(stream)


def test_a_model_with_the_shape_and_time_of_another_gets_its_own_slices(
    model: Path,
    contents: tuple[bytes, bytes],
    start_worker: Start,
    start_root: Start,
    tmp_path: Path,
) -> None:
    """The worker's cache is warm of both, and neither is taken for the other."""
    worker = start_worker("--cache-dir", str(tmp_path / "cache"))
    expected = []
    for content in contents:
        put(model, content)
        expected.append(alone(model))
    assert expected[0] != expected[1]
    loaded = []
    for number in (0, 1, 0, 1):
        put(model, contents[number])
        root = start_root("--model", str(model), "--workers", worker.address)
        with Client(root.address) as client:
            assert text(client) == expected[number]
            loaded.append(client.cluster().nodes[1].weight_bytes_from_network)
        assert root.end() == 0
    # The tensors that both have are the same slices.
    assert loaded[0] > loaded[1] > 0
    assert loaded[2:] == [0, 0]


def test_weights_that_change_under_a_running_root_are_named(
    model: Path,
    contents: tuple[bytes, bytes],
    start_worker: Start,
    start_root: Start,
    tmp_path: Path,
) -> None:
    """The root serves until it must read again; then it refuses, and goes on with the old file."""
    put(model, contents[0])
    expected = alone(model)
    worker = start_worker("--cache-dir", str(tmp_path / "cache1"))
    root = start_root("--model", str(model), "--workers", worker.address)
    with Client(root.address, timeout=SECONDS) as client:
        assert text(client) == expected
        put(model, contents[1])
        assert text(client) == expected  # its weights are in memory
        worker.kill()
        statuses = client.watch_cluster(timeout=SECONDS)
        start_worker("--cache-dir", str(tmp_path / "cache2"), "--listen", worker.address)
        for status in statuses:
            if "model.safetensors changed" in status.reason:
                break
        assert "restart the root" in status.reason
        assert status.state != root_pb2.CLUSTER_STATE_SERVING
        put(model, contents[0])
        assert text(client) == expected
    assert "Traceback" not in root.log.read_text()
    # What the worker has kept by now is the first model's.
    put(model, contents[1])
    other = alone(model)
    assert root.end() == 0
    root = start_root("--model", str(model), "--workers", worker.address)
    with Client(root.address, timeout=SECONDS) as client:
        assert text(client) == other != expected
