"""Fixtures of all tests: real data from public projects, and workers that end with their test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import WorkerProcess


@pytest.fixture(scope="session")
def testdata() -> Path:
    """shared/testdata; the test is skipped, saying why, where it is absent."""
    given = os.environ.get("HEARTH_TESTDATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "testdata"
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set HEARTH_TESTDATA")
    return folder


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts `hearth worker` processes (options as on the command line); all end with the test."""
    running: list[WorkerProcess] = []

    def start(*options: str) -> WorkerProcess:
        worker = WorkerProcess(*options, log=tmp_path / f"worker-{len(running)}.log")
        running.append(worker)
        return worker

    yield start
    for worker in running:
        worker.end()
