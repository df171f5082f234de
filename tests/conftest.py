"""Fixtures of all tests, how they are dealt to processes, and what is reported at the end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PosixPath

import leaks
import pytest
from harness import ServiceProcess, WorkerProcess
from hypothesis import settings

# No time decides a test, whatever else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TOP = Path(__file__).resolve().parents[1]
# Files whose tests multicast: what one announces, the roots of another would find.
MULTICAST = ("test_discovery.py", "test_survival.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n N --dist loadgroup` a file's tests share a process, as they share fixtures."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        file = item.path.name
        item.add_marker(pytest.mark.xdist_group("multicast" if file in MULTICAST else file))


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After the last test no process of the session runs, and no thread of Hearth's."""
    mark = leaks.mark_session()
    yield
    assert not leaks.wait_until_empty(lambda: leaks.leaked_processes(mark))
    assert not leaks.wait_until_empty(leaks.leaked_threads)


class TestData(PosixPath):
    """The folder of test data: `testdata / "a/b"` is a Path, or skips the test without it.

    A plain Path, since what is tested may look for files that need not be there.
    """

    __test__ = False

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:  # type: ignore[override]
        path = Path(self) / name
        if not path.exists():
            # The topmost folder, so that one line of the report counts all its tests.
            top = path.relative_to(self).parts[0]
            pytest.skip(f"testdata is absent: {top} (`make testdata`, or HEARTH_TESTDATA)")
        return path


_GIVEN = os.environ.get("HEARTH_TESTDATA")
_USUAL = (TOP.parent / "shared" / "testdata", TOP / "build" / "testdata")
FOLDERS = (Path(_GIVEN),) if _GIVEN else _USUAL


@pytest.fixture(scope="session")
def testdata() -> Path:
    """Files of public projects: $HEARTH_TESTDATA, else ../shared/testdata, else build/testdata."""
    return TestData(next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[-1]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was not checked, a line for each reason."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section("not checked")
        for reason, count in sorted(reasons.items()):
            terminalreporter.line(f"skipped: {count} tests: {reason}")


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
