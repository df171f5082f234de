"""File locks as Windows has them: of one byte, by attempts."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from hearth.common import system_files


class Msvcrt:
    """Windows' module as far as locks go; the first attempts fail."""

    LK_LOCK, LK_NBLCK = 1, 2

    def __init__(self, failing: int, error: int = errno.EACCES) -> None:
        self.failing, self.error = failing, error
        self.tried: list[tuple[int, int]] = []

    def locking(self, file: int, mode: int, size: int) -> None:
        # No time is spent in here: another position holds for all threads meanwhile.
        assert mode == self.LK_NBLCK
        self.tried.append((os.lseek(file, 0, os.SEEK_CUR), size))
        if len(self.tried) <= self.failing:
            raise OSError(self.error, "the lock")


def locked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, windows: Msvcrt, *, wait: bool
) -> list[float]:
    """The pauses between attempts; the file's position stays."""
    pauses: list[float] = []
    monkeypatch.setattr(system_files, "_fcntl", None)
    monkeypatch.setattr(system_files, "_msvcrt", windows)
    monkeypatch.setattr(time, "sleep", pauses.append)
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"0123")
        file.seek(2)
        try:
            system_files.lock(file.fileno(), wait=wait)
        finally:
            assert file.read() == b"23"
    return pauses


def test_a_lock_is_waited_for_as_long_as_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Windows' own way to wait gives up at the tenth attempt, after ten seconds."""
    windows = Msvcrt(failing=500)
    pauses = locked(monkeypatch, tmp_path, windows, wait=True)
    assert len(windows.tried) == 501
    assert set(windows.tried) == {(1 << 40, 1)}
    assert sum(pauses) > 20


def test_a_lock_that_is_not_waited_for_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    windows = Msvcrt(failing=1)
    with pytest.raises(OSError, match="the lock"):
        locked(monkeypatch, tmp_path, windows, wait=False)
    assert len(windows.tried) == 1


def test_an_error_that_no_wait_helps_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    windows = Msvcrt(failing=3, error=errno.EBADF)
    with pytest.raises(OSError, match="the lock"):
        locked(monkeypatch, tmp_path, windows, wait=True)
    assert len(windows.tried) == 1
