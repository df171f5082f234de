"""Hearth on systems that lack what Linux has (facilities.py says what that is)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import facilities

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
    "not (owner or foreign or others or link or fifo or memory or mode or writable"
    " or another_process or full_disk or same_time)"
)


def python(
    folder: Path, *arguments: str, seconds: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Runs Python without any of the facilities."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TOP,
        env=facilities.environment(folder, facilities.ALL) | {"HEARTH_CONFIG": os.devnull},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_facilities_are_taken_away(tmp_path: Path) -> None:
    program = (
        "import os, signal, socket, sys\n"
        "for name in ('fcntl', 'resource', 'termios', 'pwd'):\n"
        "    try: __import__(name)\n"
        "    except ImportError: print(name)\n"
        "print(hasattr(os, 'geteuid'), hasattr(os, 'pread'), hasattr(signal, 'setitimer'))\n"
        "print(hasattr(socket, 'SO_REUSEPORT'), os.path.exists('/proc'))\n"
        "try: open('/proc/self/status')\n"
        "except FileNotFoundError as error: print(error.filename)"
    )
    done = python(tmp_path, "-c", program)
    assert done.stdout.splitlines() == [
        *("fcntl", "resource", "termios", "pwd"),
        *("False False False", "False True", "/proc/self/status"),
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


def test_unit_tests_pass(tmp_path: Path) -> None:
    """Those of what uses the system, in one process without its facilities."""
    base = tmp_path / "base"
    files = [f"tests/unit/{name}" for name in FILES]
    options = ("-q", "-n", "0", "-p", "no:cacheprovider", "--basetemp", str(base))
    done = python(tmp_path, "-m", "pytest", *options, "-k", ABOUT_FACILITIES, *files)
    assert done.returncode == 0, done.stdout[-6000:]
