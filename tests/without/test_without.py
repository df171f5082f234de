"""Hearth on systems that lack what Linux has (facilities.py says what that is)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import facilities
import pytest

# All at once; `make test-without` also takes each away by itself, which test_each.py does in short.
TAKEN = ("all", *(facilities.ALL if os.environ.get("EACH_FACILITY") else ()))
TOP = Path(__file__).resolve().parents[2]
GENERATE = (
    *("generate", "--model", "demo", "--nodes", "2", "--prompt", "Once upon a time"),
    *("--max-tokens", "20", "--temperature", "0"),
)
# Tests of what uses the system: files and their locks, processes with limits, sockets, signals.
FILES = (
    "test_cache.py",
    "test_certificates.py",
    "test_converter_chat.py",
    "test_kept_page_files.py",
    "test_mesh_listener.py",
    "test_settings.py",
    "test_stopping.py",
)
# Those that are about the facilities themselves: locks, owners, modes, links, FIFOs, limits.
ABOUT_FACILITIES = (
    "not (owner or superuser or foreign or others or link or fifo or memory or mode or writable"
    " or another_process or full_disk or same_time)"
)


def python(
    folder: Path,
    *arguments: str,
    taken: Iterable[str] = facilities.ALL,
    seconds: float = 240.0,
) -> subprocess.CompletedProcess[str]:
    """Runs Python without some of the facilities, or any."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TOP,
        env=facilities.environment(folder, taken) | {"HEARTH_CONFIG": os.devnull},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


# Other ways to what is taken away than the names that Hearth uses.
OTHER_PATHS = """
import ctypes, errno, os, platform, socket
import facilities

def tried(call, *arguments):
    try:
        return call(*arguments)
    except (AttributeError, ImportError, OSError) as error:
        return type(error).__name__

def called(*arguments):
    result = ctypes.CDLL(None, use_errno=True).syscall(*map(ctypes.c_long, arguments))
    return errno.errorcode.get(ctypes.get_errno()) if result < 0 else "done"

which = ("x86_64", "aarch64").index(platform.machine())
for facility, calls in sorted(facilities.CALLS.items()):
    for call in calls:
        arguments = [0] * 6
        for at, value in call.arguments:
            arguments[at] = value
        print(facility, called(call.numbers[which], *arguments))
for module, names in sorted(facilities.BELOW.items()):
    print(names, [name for each in facilities.NAMES.values() for of, name in each
                  if of.__name__ == module and hasattr(__import__(names), name)])
for facility, names in sorted(facilities.MODULES.items()):
    print(facility, {tried(__import__, name) for name in names})
for name in ("/proc/meminfo", "/sys/fs/cgroup", "/dev/shm", "/tmp/../proc/meminfo"):
    ways = (open, os.listdir, os.scandir, os.stat, os.lstat, lambda path: os.open(path, 0))
    print(name, os.path.exists(name), {tried(way, name) for way in ways})
for name in ("mallopt", "malloc_trim", "sched_getaffinity", "sysconf"):
    print(name, tried(getattr, ctypes.CDLL(None), name))
# What is beside it is still there.
print(os.path.exists("/etc"), called({"x86_64": 39, "aarch64": 172}[platform.machine()]),
      tried(lambda: socket.socket().setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)))
"""


def test_no_other_path_leads_to_a_facility(tmp_path: Path) -> None:
    """Names of the modules below, the system calls themselves, files by every call."""
    program = f"import sys; sys.path.append({str(TOP / 'tests')!r})\n{OTHER_PATHS}"
    done = python(tmp_path, "-c", program)
    assert done.stdout.splitlines() == [
        *("affinity ENOSYS", "affinity ENOSYS", "huge_pages EINVAL"),
        *("reuse_port ENOPROTOOPT", "splice ENOSYS"),
        *("posix []", "_signal []", "_socket []"),
        *(
            f"{name} {{'ModuleNotFoundError'}}"
            for name in ("limits", "locks", "terminals", "users")
        ),
        *(
            f"{name} False {{'FileNotFoundError'}}"
            for name in ("/proc/meminfo", "/sys/fs/cgroup", "/dev/shm", "/tmp/../proc/meminfo")
        ),
        *(
            f"{n} AttributeError"
            for n in ("mallopt", "malloc_trim", "sched_getaffinity", "sysconf")
        ),
        "True done None",
    ], done.stderr


def test_two_nodes_generate(tmp_path: Path) -> None:
    """The same text as with everything there; the worker and what it starts lack it too."""
    empty = tmp_path / "all"
    empty.mkdir()
    lacking = python(empty, "-m", "hearth.cli.main", *GENERATE)
    assert lacking.returncode == 0, lacking.stderr
    plain = subprocess.run(
        [sys.executable, "-m", "hearth.cli.main", *GENERATE],
        env={**os.environ, "HEARTH_CONFIG": os.devnull},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert lacking.stdout == plain.stdout
    assert lacking.stdout.startswith("Once upon a time, there was")


@pytest.mark.parametrize("taken", TAKEN)
def test_unit_tests_pass(taken: str, tmp_path: Path) -> None:
    """Those of what uses the system, in one process without its facilities."""
    chosen = facilities.ALL if taken == "all" else (taken,)
    base = tmp_path / "base"
    files = [f"tests/unit/{name}" for name in FILES]
    options = ("-q", "-n", "0", "-p", "no:cacheprovider", "--basetemp", str(base))
    done = python(tmp_path, "-m", "pytest", *options, "-k", ABOUT_FACILITIES, *files, taken=chosen)
    assert done.returncode == 0, done.stdout[-6000:]
