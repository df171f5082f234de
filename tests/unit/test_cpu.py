"""A CPU that lacks what NumPy is compiled for: named before NumPy would end the process."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hearth import _native
from hearth.cli.main import main

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")


def test_this_machine_has_everything() -> None:
    assert _native.missing_instructions() == []


@pytest.mark.parametrize(
    ("missing", "words"),
    [(["POPCNT"], "lacks POPCNT, "), (["SSE4.1", "SSE4.2", "POPCNT"], "SSE4.1, SSE4.2 and POPCNT")],
)
def test_commands_that_compute_say_what_is_missing(
    missing: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(_native, "missing_instructions", lambda: missing)
    assert main(["convert", "demo", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    # Neither certificates nor a client of another machine's root need NumPy.
    assert main(["certs", "init", str(tmp_path / "certs")]) == 0
    assert main(["generate", "--root", "127.0.0.1:1", "--prompt", "hi"]) == 1
    assert "cannot reach a root" in capsys.readouterr().err


@pytest.mark.skipif(
    QEMU is None or platform.machine() != "x86_64" or sys.platform != "linux",
    reason="an old CPU is emulated by qemu-user, on x86-64",
)
def test_a_cpu_of_2006() -> None:
    assert QEMU is not None
    done = subprocess.run(
        [QEMU, "-cpu", "Conroe", sys.executable, "-m", "hearth.cli.main", "worker"],
        env={k: v for k, v in os.environ.items() if not k.startswith("HEARTH_")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "this CPU lacks SSE4.1, SSE4.2 and POPCNT" in done.stderr
