"""Finds what a test session left running: processes, and threads of Hearth in the session's own.

Processes are known by an environment variable that everything started by the session inherits, so
that a worker whose parent has died is found too. Linux only; elsewhere only threads are looked at.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

# Not HEARTH_...: those are settings, and are taken out of the environment of what tests start.
_MARK = "TESTS_SESSION"
# How the product names its threads.
_THREADS = ("hearth-", "rpc", "health", "load", "describe", "release", "supervisor", "watchdog")


def mark_session() -> str:
    """Marks this process, so that what it starts is marked from here on."""
    mark = uuid.uuid4().hex
    os.environ[_MARK] = mark
    return mark


def leaked_processes(mark: str) -> list[str]:
    """Processes of the session that run still, as "id: command line"."""
    wanted = f"{_MARK}={mark}".encode()
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*") if Path("/proc").is_dir() else ():
        try:
            command = (
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            marked = wanted in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile, or is not ours
        # A zombie has no command line; Python's own helper ends with this process.
        if marked and command and "resource_tracker" not in command:
            found.append(f"{folder.name}: {command}")
    return found


def leaked_threads() -> list[str]:
    """Names of Hearth's threads that run still in this process."""
    return [t.name for t in threading.enumerate() if t.name.startswith(_THREADS)]


def wait_until_empty(find: Callable[[], list[str]], seconds: float = 15.0) -> list[str]:
    """Results of `find` that remain after `seconds`, the time for pending ends."""
    deadline = time.monotonic() + seconds
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
