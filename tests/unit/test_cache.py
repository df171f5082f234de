"""Slices on disk: reads return what was written, or nothing; a full disk is survived."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from harness import SUPERUSER, MemorySink
from hypothesis import given
from hypothesis import strategies as st

from hearth.common.errors import HearthError, Reason
from hearth.worker.cache import Part, SliceCache


def identity(number: int) -> bytes:
    return number.to_bytes(16, "big")


def data(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def store(cache: SliceCache, number: int, content: bytes) -> None:
    part = cache.part(identity(number), len(content))
    assert part is not None
    part.write(0, content)
    part.finish(xxhash.xxh3_128_digest(content))


def read(cache: SliceCache, number: int, size: int) -> bytes | None:
    sink = MemorySink()
    return bytes(sink.data) if cache.read(identity(number), size, sink) else None


def test_what_was_stored_is_read(tmp_path: Path) -> None:
    cache = SliceCache(tmp_path / "deep" / "folder")
    store(cache, 1, data(10_000))
    assert read(cache, 1, 10_000) == data(10_000)
    assert read(cache, 2, 10_000) is None
    assert cache.usage()[0] == 1


@given(content=st.binary(min_size=1, max_size=200), damage=st.data())
def test_any_damage_is_noticed(content: bytes, damage: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = SliceCache(Path(folder))
        store(cache, 1, content)
        (path,) = Path(folder).glob("*.slice")
        stored = bytearray(path.read_bytes())
        place = damage.draw(st.integers(0, len(stored) - 1))
        if damage.draw(st.booleans()):
            stored[place] ^= damage.draw(st.integers(1, 255))
        else:
            del stored[place:]
        path.write_bytes(stored)
        assert read(cache, 1, len(content)) is None
        assert not path.exists()


def test_exchanged_slices_are_refused(tmp_path: Path) -> None:
    """Each is whole, and its trailer is right for its bytes."""
    cache = SliceCache(tmp_path)
    store(cache, 1, data(1000, 1))
    store(cache, 2, data(1000, 2))
    one, two = (tmp_path / f"{identity(number).hex()}.slice" for number in (1, 2))
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)
    assert read(cache, 1, 1000) is None
    assert read(cache, 2, 1000) is None
    assert cache.usage() == (0, 0)


def test_slices_of_the_earlier_format_are_removed(tmp_path: Path) -> None:
    content = data(1000)
    old = tmp_path / f"{identity(1).hex()}.slice"
    trailer = struct.pack("<8sQ16s", b"HEARTHS1", 1000, xxhash.xxh3_128_digest(content))
    old.write_bytes(content + trailer)
    cache = SliceCache(tmp_path)
    assert not old.exists()
    store(cache, 1, content)
    assert read(SliceCache(tmp_path), 1, 1000) == content


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def device(path: Path, victim: Path) -> None:
    path.symlink_to("/dev/zero")


def port(path: Path, victim: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def shared(path: Path, victim: Path) -> None:
    path.write_bytes(bytes(5000))
    path.chmod(0o666)


def folder(path: Path, victim: Path) -> None:
    path.mkdir()


STRANGERS = [link, fifo, device, port, shared, folder]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_not_this_users_own_file_is_not_read(
    tmp_path: Path, stranger: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor waited for: a FIFO has no writer."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    cache = SliceCache(tmp_path / "cache")
    path = tmp_path / "cache" / f"{identity(1).hex()}.slice"
    stranger(path, victim)
    assert read(cache, 1, 1000) is None
    assert "dropping" in caplog.text
    assert victim.read_text() == "precious"
    if stranger is not folder:
        store(cache, 1, data(1000))
        assert read(cache, 1, 1000) == data(1000)


@pytest.mark.parametrize("stranger", [*STRANGERS, hard_link])
def test_what_is_not_this_users_own_file_is_not_written(
    tmp_path: Path, stranger: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    cache = SliceCache(tmp_path / "cache")
    stranger(tmp_path / "cache" / f"{identity(1).hex()}.part", victim)
    assert cache.has_part(identity(1)) == (stranger in (shared, hard_link))
    store(cache, 1, data(1000))
    assert read(cache, 1, 1000) == data(1000)
    assert victim.read_text() == "precious"


@pytest.mark.skipif(not SUPERUSER, reason="only the superuser gives files away")
def test_files_and_folders_of_another_user_are_refused(tmp_path: Path) -> None:
    cache = SliceCache(tmp_path / "cache")
    store(cache, 1, data(1000))
    os.chown(tmp_path / "cache" / f"{identity(1).hex()}.slice", 12345, 12345)
    assert read(cache, 1, 1000) is None
    os.chown(tmp_path / "cache", 12345, 12345)
    with pytest.raises(HearthError, match=r"cache: it belongs to user 12345") as error:
        SliceCache(tmp_path / "cache")
    assert error.value.reason == Reason.BAD_SETTING


@pytest.mark.skipif(not SUPERUSER, reason="only the superuser gives files away")
def test_a_mounted_volume_of_the_superuser_has_a_folder_for_each_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Kubernetes mounts volumes: root's, and anyone may write to them."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    own = tmp_path / "cache" / "user-12345"
    own.mkdir(mode=0o700)
    os.chown(own, 12345, 12345)
    SliceCache(tmp_path / "cache")
    os.chown(own, 0, 0)
    with pytest.raises(HearthError, match="it belongs to user 0"):
        SliceCache(tmp_path / "cache")
    own.rmdir()
    own.symlink_to(tmp_path)
    with pytest.raises(HearthError, match="user-12345 in it is not a folder"):
        SliceCache(tmp_path / "cache")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(HearthError, match=f"mode {mode:o}.*chmod go-w") as error:
        SliceCache(tmp_path / "cache")
    assert error.value.reason == Reason.BAD_SETTING


def test_a_new_folder_is_the_users_alone(tmp_path: Path) -> None:
    store(SliceCache(tmp_path / "cache"), 1, data(1000))
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    (path,) = (tmp_path / "cache").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_entry_of_another_size_is_dropped(tmp_path: Path) -> None:
    cache = SliceCache(tmp_path)
    store(cache, 1, data(100))
    assert read(cache, 1, 101) is None
    assert cache.usage() == (0, 0)


def test_a_part_goes_on_where_it_was_and_survives_its_process(tmp_path: Path) -> None:
    content = data(3000)
    cache = SliceCache(tmp_path)
    part = cache.part(identity(1), 3000)
    assert part is not None
    part.write(0, content[:1000])
    os.close(part._file)  # what a crash leaves: the bytes, and no lock
    again = SliceCache(tmp_path)
    assert again.has_part(identity(1))
    resumed = again.part(identity(1), 3000)
    assert resumed is not None
    sink = MemorySink()
    resumed.read(sink, 3000)
    assert sink.data == content[:1000]
    resumed.write(1000, content[1000:])
    resumed.finish(xxhash.xxh3_128_digest(content))
    assert read(again, 1, 3000) == content
    assert not again.has_part(identity(1))


def test_a_part_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    content = data(3000)
    first = SliceCache(tmp_path).part(identity(1), 3000)
    second = SliceCache(tmp_path).part(
        identity(1), 3000
    )  # a lock is of the open file: as two processes
    assert first is not None
    assert second is not None
    first.write(0, content[:2000])
    second.write(0, content)
    second.finish(xxhash.xxh3_128_digest(content))
    first.write(2000, content[2000:])
    first.finish(xxhash.xxh3_128_digest(content))
    assert read(SliceCache(tmp_path), 1, 3000) == content
    assert [path.suffix for path in tmp_path.iterdir()] == [".slice"]


def test_a_given_up_private_part_leaves_nothing(tmp_path: Path) -> None:
    cache = SliceCache(tmp_path)
    first = cache.part(identity(1), 3000)
    second = cache.part(identity(1), 3000)
    assert first is not None
    assert second is not None
    second.close()
    first.close()
    assert [path.name for path in tmp_path.iterdir()] == [f"{identity(1).hex()}.part"]


def test_the_oldest_use_is_evicted_and_pins_are_not(tmp_path: Path) -> None:
    cache = SliceCache(tmp_path, limit_bytes=5000)
    for number in range(3):
        store(cache, number, data(1500, number))
        os.utime(tmp_path / f"{identity(number).hex()}.slice", (number, number))
    assert read(cache, 0, 1500) is not None  # used now: no longer the oldest
    cache.pin([identity(1)])
    store(cache, 3, data(1500, 3))
    assert [read(cache, number, 1500) is not None for number in range(4)] == [
        True,
        True,
        False,
        True,
    ]


def test_a_limit_that_the_plan_exceeds_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = SliceCache(tmp_path, limit_bytes=4000)
    cache.pin(identity(number) for number in range(9))
    with caplog.at_level(logging.WARNING):
        kept = 0
        for number in range(9):
            part = cache.part(identity(number), 1500)
            if part is not None:
                part.write(0, data(1500))
                part.finish(xxhash.xxh3_128_digest(data(1500)))
                kept += 1
    assert kept == 2
    assert len([record for record in caplog.records if "full" in record.message]) == 1


def test_a_full_disk_means_no_caching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = SliceCache(tmp_path)

    def full(*arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    part = cache.part(identity(1), 100)
    assert isinstance(part, Part)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        part.write(0, b"x" * 100)
    monkeypatch.undo()
    part.close()
    monkeypatch.setattr(os, "open", full)
    with caplog.at_level(logging.WARNING):
        assert cache.part(identity(2), 100) is None
    assert "continuing without" in caplog.text


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HearthError, match="file/cache") as error:
        SliceCache(tmp_path / "file" / "cache")
    assert error.value.reason == Reason.BAD_SETTING


def test_identities_are_names_that_cannot_leave_the_folder(tmp_path: Path) -> None:
    cache = SliceCache(tmp_path / "cache")
    content = data(10)
    part = cache.part(b"../../../etc/passwd", 10)
    assert part is not None
    part.write(0, content)
    part.finish(xxhash.xxh3_128_digest(content))
    (path,) = (tmp_path / "cache").iterdir()
    assert path.suffix == ".slice"


def test_a_slice_that_cannot_be_removed_is_only_absent(tmp_path: Path) -> None:
    cache = SliceCache(tmp_path)
    (tmp_path / f"{identity(1).hex()}.slice").mkdir()  # as a read-only disk, for the superuser too
    assert read(cache, 1, 100) is None
