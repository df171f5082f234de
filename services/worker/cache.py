"""Weight slices on disk, by identity, so that a restart moves no weights.

A finished slice is one file, `<identity>.slice`: its bytes and a trailer with their xxh3_128
digest, verified whenever it is read. An unfinished one is a `.part`, which a later stream goes on
with. Several workers may share the folder: files appear by rename, and a part is locked by the
process that writes it. Nothing is synced to disk on purpose: what a power cut leaves behind fails
its digest and is fetched again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size

log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]

_TRAILER = struct.Struct("<8sQ16s")
_MAGIC = b"HEARTHS1"
# Left free on the disk for everybody else.
_SPARE_BYTES = 64 << 20


class Sink(Protocol):
    """Destination of the bytes of a slice, in order."""

    def space(self) -> Bytes:
        """Memory for the next bytes; some of it, or all."""

    def filled(self, count: int) -> None:
        """So many bytes of `space` are there now."""

    def digest(self) -> bytes:
        """xxh3_128 of the bytes that are there."""


class Part:
    """A slice being written; only this process writes to it. Every method may raise OSError."""

    def __init__(self, path: Path, file: int, size: int, private: bool) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._private = private
        self.held = min(os.fstat(file).st_size, size)

    def read(self, sink: Sink, most: int) -> None:
        """Gives `sink` what an earlier stream left, `most` bytes of it at most."""
        self.held = _read(self._file, sink, min(self.held, most))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Stores verified bytes at `offset`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            view = view[written:]
            offset += written

    def truncate(self, size: int) -> None:
        """Forgets all bytes from `size` on."""
        os.ftruncate(self._file, size)

    def finish(self, digest: bytes) -> None:
        """Makes the slice a finished one, under its own name."""
        os.ftruncate(self._file, self._size)
        self.write(self._size, _TRAILER.pack(_MAGIC, self._size, digest))
        final = self._path.with_name(self._path.name.partition(".")[0] + ".slice")
        self._path.replace(final)
        self._private = False
        self.close()

    def close(self) -> None:
        """Ends writing; what is there stays for a later stream (a private part does not)."""
        if self._file >= 0:
            if self._private:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(self._file)
            self._file = -1


class SliceCache:
    """A folder of at most `limit_bytes` of slices (None: what the disk has); oldest use goes first.

    Raises HearthError BAD_SETTING when the folder cannot be used at all; later trouble with the
    disk is logged and means only that a slice is not cached.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._pinned: set[str] = set()
        self._full_told = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{os.getpid()}-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            problem = (
                f"cannot use cache folder {folder}: {error.strerror or error}; "
                "choose another --cache-dir, or none"
            )
            raise HearthError(Reason.BAD_SETTING, problem, {"path": folder}) from None

    def usage(self) -> tuple[int, int]:
        """(finished slices, their bytes)."""
        sizes = [size for path, size, _ in self._files() if path.suffix == ".slice"]
        return len(sizes), sum(sizes)

    def pin(self, identities: Iterable[bytes]) -> None:
        """The running plan's slices are not evicted by this process; replaces the last pins."""
        self._pinned = {identity.hex() for identity in identities}
        self._full_told = False

    def read(self, identity: bytes, size: int, sink: Sink) -> bool:
        """Gives `sink` a slice of `size` bytes; False when it is absent or not right.

        What the sink was given is verified at the end only. Removes a corrupt entry.
        """
        path = self._path(identity)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("cache: cannot open %s: %s", path, error)
            return False
        try:
            if not self._verified(path, file, size, sink):
                return False
            with contextlib.suppress(OSError):
                os.utime(path)  # when it was used last: what eviction goes by
            return True
        finally:
            os.close(file)

    def has_part(self, identity: bytes) -> bool:
        """True when an earlier stream left a part of this slice."""
        return (self.folder / f"{identity.hex()}.part").exists()

    def part(self, identity: bytes, size: int) -> Part | None:
        """A part to write to, with what an earlier stream left; None when it cannot be cached."""
        try:
            if not self._make_room(identity, size):
                return None
            return self._open_part(identity, size)
        except OSError as error:
            log.warning("cache: cannot write to %s, going on without: %s", self.folder, error)
            return None

    def _path(self, identity: bytes) -> Path:
        return self.folder / f"{identity.hex()}.slice"

    def _verified(self, path: Path, file: int, size: int, sink: Sink) -> bool:
        problem = ""
        try:
            stored = os.fstat(file).st_size
            trailer = os.pread(file, _TRAILER.size, size)
            if stored != size + _TRAILER.size or len(trailer) != _TRAILER.size:
                problem = f"{stored} bytes instead of {size + _TRAILER.size}"
            else:
                magic, written, digest = _TRAILER.unpack(trailer)
                if magic != _MAGIC or written != size:
                    problem = "its trailer is not ours"
                elif _read(file, sink, size) != size:
                    problem = "cannot be read to its end"
                elif sink.digest() != digest:
                    problem = "its bytes do not match its digest"
        except OSError as error:
            problem = str(error)
        if problem:
            log.warning("cache: dropping %s (%s): it will be fetched again", path.name, problem)
            with contextlib.suppress(OSError):  # a disk that is read-only now, or a folder
                path.unlink()
        return not problem

    def _open_part(self, identity: bytes, size: int) -> Part:
        shared = self.folder / f"{identity.hex()}.part"
        file = os.open(shared, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Locked, but perhaps its writer has renamed it: then it is a finished slice.
            if _same(file, shared):
                return Part(shared, file, size, private=False)
        except OSError:
            pass  # another process writes this slice now
        os.close(file)
        own = self.folder / f"{identity.hex()}.{os.getpid()}-{secrets.token_hex(4)}.part"
        file = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Part(own, file, size, private=True)

    def _files(self) -> list[tuple[Path, int, float]]:
        """(path, bytes, last use) of every slice and part."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith((".slice", ".part")):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        found.append((Path(entry.path), status.st_size, status.st_mtime))
        return found

    def _make_room(self, identity: bytes, size: int) -> bool:
        """Evicts until `size` more bytes fit the limit; False when they cannot."""
        free = shutil.disk_usage(self.folder).free
        if free < size + _SPARE_BYTES:
            self._tell_full(f"the disk has {format_size(free)} left")
            return False
        if self.limit_bytes is None:
            return True
        own = identity.hex()
        files = [item for item in self._files() if item[0].name.partition(".")[0] != own]
        used = sum(bytes_ for _, bytes_, _ in files)
        for path, bytes_, _ in sorted(files, key=lambda item: item[2]):
            if used + size <= self.limit_bytes:
                break
            if path.name.partition(".")[0] in self._pinned or not _unlocked(path):
                continue
            path.unlink(missing_ok=True)
            used -= bytes_
        if used + size > self.limit_bytes:
            self._tell_full(
                f"the limit is {format_size(self.limit_bytes)}, and the slices of this plan alone "
                "need more"
            )
            return False
        return True

    def _tell_full(self, why: str) -> None:
        if not self._full_told:
            self._full_told = True
            log.warning("cache %s is full: %s; going on without caching", self.folder, why)


def _read(file: int, sink: Sink, size: int) -> int:
    """Reads the first `size` bytes, or to the file's end; bytes read."""
    done = 0
    while done < size:
        count = os.preadv(file, [sink.space()[: size - done].data], done)
        if not count:
            break
        sink.filled(count)
        done += count
    return done


def _same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _unlocked(path: Path) -> bool:
    """True when no process writes this file now (finished slices have no writer)."""
    if path.suffix != ".part":
        return True
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(file)
