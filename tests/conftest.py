"""Fixtures of all tests: real data from public projects, services that end with their test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import leaks
import pytest
from harness import ServiceProcess, WorkerProcess
from hypothesis import settings

# No time decides a test, whatever else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After the last test no process of the session runs, and no thread of Hearth's."""
    mark = leaks.mark_session()
    yield
    assert not leaks.wait_until_empty(lambda: leaks.leaked_processes(mark))
    assert not leaks.wait_until_empty(leaks.leaked_threads)


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

    def start(*options: str, environ: Mapping[str, str] | None = None) -> WorkerProcess:
        log = tmp_path / f"worker-{len(running)}.log"
        worker = WorkerProcess(*options, log=log, environ=environ or {})
        running.append(worker)
        return worker

    yield start
    for worker in running:
        worker.end()


@pytest.fixture
def start_root(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Starts `hearth root` on a free port, one thread (options as on the command line).

    All end with the test.
    """
    running: list[ServiceProcess] = []

    def start(*options: str) -> ServiceProcess:
        settings = ("--listen", "127.0.0.1:0", "--threads", "1")
        log = tmp_path / f"root-{len(running)}.log"
        root = ServiceProcess("root", *settings, *options, log=log)
        running.append(root)
        return root

    yield start
    for root in running:
        root.end()
