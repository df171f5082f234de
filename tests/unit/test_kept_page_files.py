"""KV pages on a node's disk: what was stored is read, or nothing; a full disk is survived."""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import WorkerMetrics
from hearth.worker.own_files import OwnFolder
from hearth.worker.page_files import Bytes, PageFiles

SIZE = 1000
FILE_BYTES = SIZE + 64
FAST = 1e12


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


def data(number: int, size: int = SIZE) -> Bytes:
    return np.random.default_rng(number).integers(0, 256, size).astype(np.uint8)


@contextmanager
def opened(folder: Path, limit: int | None = None, **more: Any) -> Iterator[PageFiles]:
    """Page files; all that was stored is on disk when the block ends."""
    files = PageFiles(folder, limit, **({"bytes_per_second": FAST} | more))
    try:
        yield files
    finally:
        files.close(60)


def read(files: PageFiles, number: int, size: int = SIZE) -> bytes | None:
    """The bytes of a page; None if it is not there."""
    wanted = name(number)
    for _ in range(100):
        files.want({wanted: size}, 10)
        found = files.take(wanted)
        if found is not None:
            return found.tobytes() or None
    raise AssertionError("no answer")


def store(folder: Path, *numbers: int, limit: int | None = None) -> None:
    with opened(folder, limit) as files:
        for number in numbers:
            assert files.store(name(number), data(number))


def count(metrics: WorkerMetrics, event: str) -> float:
    return metrics.registry.get_sample_value("hearth_stored_pages_total", {"event": event}) or 0


def test_what_was_stored_is_read_by_the_next_process(tmp_path: Path) -> None:
    store(tmp_path / "deep" / "pages", 1, 2)
    metrics = WorkerMetrics()
    with opened(tmp_path / "deep" / "pages", metrics=metrics) as files:
        assert files.usage == (2, 2 * FILE_BYTES)
        assert name(1) in files and name(3) not in files
        assert read(files, 1) == data(1).tobytes()
        assert read(files, 3) is None
        # Of another size: a page of another plan.
        assert read(files, 2, SIZE + 1) is None
        assert read(files, 2) is None
    assert (count(metrics, "fetched"), count(metrics, "missing")) == (1, 2)
    assert count(metrics, "damaged") == 1


def test_what_waits_to_be_written_is_read_from_memory(tmp_path: Path) -> None:
    with opened(tmp_path, bytes_per_second=1.0) as files:  # the second waits for long
        for number in (1, 2):
            assert files.store(name(number), data(number))
        assert name(2) in files
        assert read(files, 2) == data(2).tobytes()
    with opened(tmp_path) as files:  # written at the end
        assert read(files, 2) == data(2).tobytes()


def test_a_page_that_is_stored_again_is_replaced(tmp_path: Path) -> None:
    store(tmp_path, 1)
    with opened(tmp_path) as files:
        files.store(name(1), data(7))
    with opened(tmp_path) as files:
        assert read(files, 1) == data(7).tobytes()
        assert files.usage == (1, FILE_BYTES)


def test_a_dropped_page_is_gone(tmp_path: Path) -> None:
    store(tmp_path, 1, 2)
    with opened(tmp_path, bytes_per_second=1.0) as files:
        files.drop(name(1))
        assert name(1) not in files
        files.store(name(3), data(3))
        files.store(name(4), data(4))
        files.drop(name(4))  # before it was written
        assert files.usage[0] <= 2
    with opened(tmp_path) as files:
        assert [number for number in range(5) if name(number) in files] == [2, 3]


@given(content=st.binary(min_size=1, max_size=200), damage=st.data())
@settings(deadline=None, max_examples=30)
def test_any_damage_is_a_miss(content: bytes, damage: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with opened(Path(folder)) as files:
            files.store(name(1), np.frombuffer(content, np.uint8))
        (path,) = Path(folder).glob("*.page")
        stored = bytearray(path.read_bytes())
        place = damage.draw(st.integers(0, len(stored) - 1))
        if damage.draw(st.booleans()):
            stored[place] ^= 1 << damage.draw(st.integers(0, 7))
        else:
            del stored[place:]
        path.write_bytes(stored)
        with opened(Path(folder)) as files:
            assert read(files, 1, len(content)) is None
        assert not path.exists()


def test_a_full_folder_loses_the_pages_used_least_recently(tmp_path: Path) -> None:
    store(tmp_path, *range(10))
    for number in range(10):
        path = tmp_path / f"{name(number).hex()}.page"
        os.utime(path, (1000 + number, 1000 + number))
    metrics = WorkerMetrics()
    with opened(tmp_path, 10 * FILE_BYTES, metrics=metrics) as files:
        assert read(files, 0) is not None  # used now
        files.store(name(10), data(10))
    with opened(tmp_path) as files:
        kept = [number for number in range(11) if name(number) in files]
    assert 0 in kept and 10 in kept
    assert kept[1:] == list(range(11 - len(kept) + 1, 11))
    assert len(kept) == 9
    assert count(metrics, "removed") == 2


def test_a_page_larger_than_the_folder_is_not_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path, 1, 2, limit=FILE_BYTES - 1)
    assert list(tmp_path.glob("*.page")) == []
    assert caplog.text.count("--kv-cache-size is 1.0 KiB, and one page 1.0 KiB") == 1


@pytest.mark.parametrize("problem", ["free", "write", "create"])
def test_a_full_disk_is_survived(
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store(tmp_path, 1)
    metrics = WorkerMetrics()
    files = PageFiles(tmp_path, metrics=metrics)
    if problem == "free":
        monkeypatch.setattr(OwnFolder, "free_bytes", lambda self: 1 << 20)
    elif problem == "create":
        monkeypatch.setattr(OwnFolder, "create", full)
    else:
        monkeypatch.setattr("hearth.worker.page_files._write", full)
    with caplog.at_level(logging.WARNING):
        for number in (2, 3, 4):
            files.store(name(number), data(number))
        files.close(60)
    assert caplog.text.count("KV pages on disk:") == 1
    assert count(metrics, "dropped") == 3
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name(1).hex()}.page"]
    with opened(tmp_path) as again:
        assert read(again, 1) == data(1).tobytes()
        assert name(2) not in again


def test_memory_for_pages_that_wait_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hearth.worker.page_files._QUEUE_BYTES", 2 * SIZE)
    with opened(tmp_path, bytes_per_second=1.0) as files:
        taken = [files.store(name(number), data(number)) for number in range(6)]
        # Perhaps one was written already.
        assert 2 <= sum(taken) <= 3
    with opened(tmp_path) as files:
        for number in range(3):
            files.store(name(number), data(number))
    with opened(tmp_path) as files:
        wanted = {name(number): SIZE for number in range(3)}
        files.want(wanted, 10)
        found: set[bytes] = set()
        # The third is read once another was taken.
        while len(found) < 3:
            files.want({one: SIZE for one in wanted if one not in found}, 10)
            found |= {one for one in wanted if one not in found and files.take(one) is not None}


def test_what_others_left_is_never_read_or_written_through(tmp_path: Path) -> None:
    pages, outside = tmp_path / "pages", tmp_path / "outside"
    store(pages, 1, 2, 3)
    outside.write_bytes(b"precious")
    first, second, third = sorted(pages.glob("*.page"))
    first.rename(tmp_path / "copy")
    first.symlink_to(tmp_path / "copy")
    second.unlink()
    os.mkfifo(second)
    third.chmod(0o666)  # others may have written to it
    with opened(pages) as files:
        assert [read(files, number) for number in (1, 2, 3)] == [None] * 3
        # And may be stored again.
        for number in (1, 2, 3):
            files.store(name(number), data(number))
    assert (tmp_path / "copy").stat().st_size == FILE_BYTES
    with opened(pages) as files:
        assert [read(files, number) for number in (1, 2, 3)] == [
            data(number).tobytes() for number in (1, 2, 3)
        ]


def test_only_this_user_can_read_the_files(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    with opened(pages) as files:
        files.store(name(1), data(1))
        secret = files.secret("prefix.secret", 32)
    assert stat.S_IMODE(pages.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in pages.iterdir()} == {0o600}
    with opened(pages) as files:
        assert files.secret("prefix.secret", 32) == secret
        # Cut by a full disk: another one, with which nothing old is found.
        (pages / "prefix.secret").write_bytes(b"short")
        other = files.secret("prefix.secret", 32)
    assert len(other) == 32 and other != secret


def test_a_folder_or_secret_of_others_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(HearthError, match="--cache-dir, or --kv-cache ram") as caught:
        PageFiles(open_to_all)
    assert caught.value.reason == Reason.BAD_SETTING
    (tmp_path / "elsewhere").write_bytes(b"x" * 32)
    with opened(tmp_path / "pages") as files:
        (tmp_path / "pages" / "prefix.secret").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(HearthError, match="a symbolic link; remove it"):
            files.secret("prefix.secret", 32)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    store(tmp_path, 1)
    (tmp_path / f"{name(2).hex()}.99-abc.part").write_bytes(b"half")
    with opened(tmp_path) as files:
        assert files.usage[0] == 1
    assert len(list(tmp_path.iterdir())) == 1
