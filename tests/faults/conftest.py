"""The secured cluster, once for each file that asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from harness import hearth
from secured import GENERATE, Cluster, running_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A root and two workers with certificates of one cluster, and those of another."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> str:
    """The demo's text on three nodes without certificates."""
    ran = hearth(*GENERATE, "--model", "demo", "--nodes", "3", "--threads", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    return str(json.loads(ran.stdout)["text"])
