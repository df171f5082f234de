"""Cache of weight slices on disk, by identity, so that a restart transfers no weights.

A finished slice is one file, `<identity>.slice`: its bytes and a trailer with their xxh3_128
digest, verified at every read. An unfinished one is a `.part` file, which a later stream continues.
Several workers may share the folder: files appear by rename, and the process that writes a part
locks it. Nothing is synced to disk: a file damaged by a power cut fails its digest and is fetched
again.
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
# Left free on the disk for other programs.
_SPARE_BYTES = 64 << 20


class Sink(Protocol):
    """Destination of a slice's bytes, in order."""

    def space(self) -> Bytes:
        """Memory for the next bytes, all or some of them."""

    def filled(self, count: int) -> None:
        """Counts the first `count` bytes of `space` as received."""

    def digest(self) -> bytes:
        """xxh3_128 of the bytes received so far."""


class Part:
    """A slice being written; only this process writes to it. Every method may raise OSError."""

    def __init__(self, path: Path, file: int, size: int, private: bool) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._private = private
        self.held = min(os.fstat(file).st_size, size)

    def read(self, sink: Sink, most: int) -> None:
        """Passes the bytes that an earlier stream left to `sink`, at most `most` of them."""
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
        """Completes the slice: adds the trailer and renames the file to `.slice`."""
        os.ftruncate(self._file, self._size)
        self.write(self._size, _TRAILER.pack(_MAGIC, self._size, digest))
        final = self._path.with_name(self._path.name.partition(".")[0] + ".slice")
        self._path.replace(final)
        self._private = False
        self.close()

    def close(self) -> None:
        """Ends writing. The part stays for a later stream, unless it is private."""
        if self._file >= 0:
            if self._private:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(self._file)
            self._file = -1


class SliceCache:
    """A folder of at most `limit_bytes` of slices (None: no limit); evicts the least recently used.

    Raises HearthError BAD_SETTING if the folder cannot be used. Later disk errors are logged; the
    slice is then just not cached.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._pinned: set[str] = set()
        self._full_warned = False
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
        """Protects the running plan's slices from eviction; replaces earlier pins."""
        self._pinned = {identity.hex() for identity in identities}
        self._full_warned = False

    def read(self, identity: bytes, size: int, sink: Sink) -> bool:
        """Passes a slice of `size` bytes to `sink`; False if it is absent or corrupt.

        The digest is checked only after the sink has all bytes. A corrupt file is removed.
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
                os.utime(path)  # eviction orders slices by the time of last use
            return True
        finally:
            os.close(file)

    def has_part(self, identity: bytes) -> bool:
        """True if an earlier stream left a part of this slice."""
        return (self.folder / f"{identity.hex()}.part").exists()

    def part(self, identity: bytes, size: int) -> Part | None:
        """A part to write to, with any bytes of an earlier stream; None if it cannot be cached."""
        try:
            if not self._make_room(identity, size):
                return None
            return self._open_part(identity, size)
        except OSError as error:
            log.warning("cache: cannot write to %s, continuing without: %s", self.folder, error)
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
                    problem = "the trailer is not a Hearth slice's"
                elif _read(file, sink, size) != size:
                    problem = "the file ends early"
                elif sink.digest() != digest:
                    problem = "the bytes do not match the digest"
        except OSError as error:
            problem = str(error)
        if problem:
            log.warning("cache: dropping %s (%s): it will be fetched again", path.name, problem)
            with contextlib.suppress(OSError):  # for example a read-only disk
                path.unlink()
        return not problem

    def _open_part(self, identity: bytes, size: int) -> Part:
        shared = self.folder / f"{identity.hex()}.part"
        file = os.open(shared, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its writer may have finished and renamed it before the lock was taken.
            if _same(file, shared):
                return Part(shared, file, size, private=False)
        except OSError:
            pass  # another process is writing this slice
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
        """Evicts slices until `size` more bytes fit the limit; False if they cannot."""
        free = shutil.disk_usage(self.folder).free
        if free < size + _SPARE_BYTES:
            self._warn_full(f"the disk has only {format_size(free)} free")
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
            self._warn_full(
                f"the limit is {format_size(self.limit_bytes)}, and the slices of this plan alone "
                "need more"
            )
            return False
        return True

    def _warn_full(self, why: str) -> None:
        if not self._full_warned:
            self._full_warned = True
            log.warning("cache %s is full: %s; continuing without caching", self.folder, why)


def _read(file: int, sink: Sink, size: int) -> int:
    """Reads the first `size` bytes, or up to the end of the file; returns the bytes read."""
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
    """True if no process is writing this file; finished slices have no writer."""
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
