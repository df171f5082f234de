"""Cache of weight slices on disk, by identity, so that a restart transfers no weights.

A finished slice is one file, `<identity>.slice`: its bytes and a trailer with an xxh3_128 digest of
bytes and identity, verified at every read: damaged and exchanged files are fetched again. An
unfinished slice is a `.part` file, which a later stream continues. Several workers of one user may
share the folder: files appear by rename, and the process that writes a part locks it. Nothing is
synced to disk: a file damaged by a power cut fails its digest.

The digest is not a signature: only this user may write to the folder. It, and every file in it,
must be the user's own and not writable to others. Symbolic links, FIFOs and devices are never
followed or read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from hearth.common import system_files
from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size
from hearth.worker.own_files import ForeignFileError, OwnFolder

log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]

_TRAILER = struct.Struct("<8sQ16s")
_MAGIC = b"HEARTHS2"
# The trailer of earlier versions: without the identity, and of models known by time and size.
_OLD_MAGIC = b"HEARTHS1"
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

    def __init__(
        self, folder: OwnFolder, name: str, identity: bytes, file: int, size: int, private: bool
    ) -> None:
        """name: of the part in the folder. private: of no use to another stream."""
        self._folder = folder
        self._name = name
        self._identity = identity
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
            written = system_files.write_at(self._file, view, offset)
            view = view[written:]
            offset += written

    def truncate(self, size: int) -> None:
        """Forgets all bytes from `size` on."""
        os.ftruncate(self._file, size)

    def finish(self, digest: bytes) -> None:
        """Completes the slice: adds the trailer and renames the file to `.slice`.

        digest: xxh3_128 of its bytes.
        """
        os.ftruncate(self._file, self._size)
        self.write(self._size, _trailer(self._identity, self._size, digest))
        final = f"{self._identity.hex()}.slice"
        if not system_files.OPEN_FILES_MOVE:
            os.close(self._file)
            self._file = -1
        self._folder.rename(self._name, final)
        self._private = False
        self.close()

    def close(self) -> None:
        """Ends writing. The part stays for a later stream, unless it is private."""
        if self._file >= 0:
            if self._private and system_files.OPEN_FILES_MOVE:
                with contextlib.suppress(OSError):
                    self._folder.unlink(self._name)
            os.close(self._file)
            self._file = -1
        if self._private and not system_files.OPEN_FILES_MOVE:
            with contextlib.suppress(OSError):
                self._folder.unlink(self._name)


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
        # A file that was refused is named once.
        self._refused: set[str] = set()
        try:
            self._folder = OwnFolder(folder)
            self._folder.check_writable()
        except OSError as error:
            problem = (
                f"cannot use cache folder {folder}: {error.strerror or error}; "
                "choose another --cache-dir, or none"
            )
            raise HearthError(Reason.BAD_SETTING, problem, {"path": folder}) from None
        self._remove_old()

    def usage(self) -> tuple[int, int]:
        """(finished slices, their bytes)."""
        sizes = [size for name, size, _ in self._files() if name.endswith(".slice")]
        return len(sizes), sum(sizes)

    def pin(self, identities: Iterable[bytes]) -> None:
        """Protects the running plan's slices from eviction; replaces earlier pins."""
        self._pinned = {identity.hex() for identity in identities}
        self._full_warned = False

    def read(self, identity: bytes, size: int, sink: Sink) -> bool:
        """Passes a slice of `size` bytes to `sink`; False if it is absent or corrupt.

        The digest is checked only after the sink has all bytes. A corrupt file is removed.
        """
        name = f"{identity.hex()}.slice"
        try:
            file = self._folder.open(name)
        except FileNotFoundError:
            return False
        except ForeignFileError as error:
            self._drop(name, error.problem)
            return False
        except OSError as error:
            log.warning("cache: cannot open %s: %s", name, error)
            return False
        try:
            problem = self._wrong(file, identity, size, sink)
            if problem:
                self._drop(name, problem)
                return False
            with contextlib.suppress(OSError):
                system_files.touch(file)  # eviction orders slices by the time of last use
            return True
        finally:
            os.close(file)

    def close(self) -> None:
        """Close the folder; the cache cannot be used any more."""
        self._folder.close()

    def has_part(self, identity: bytes) -> bool:
        """True if an earlier stream left a part of this slice."""
        return self._folder.has_file(f"{identity.hex()}.part")

    def part(self, identity: bytes, size: int) -> Part | None:
        """A part to write to, with any bytes of an earlier stream; None if it cannot be cached."""
        try:
            if not self._make_room(identity, size):
                return None
            return self._open_part(identity, size)
        except OSError as error:
            log.warning("cache: cannot write to %s, continuing without: %s", self.folder, error)
            return None

    def _wrong(self, file: int, identity: bytes, size: int, sink: Sink) -> str:
        """The reason that an open file is not this slice, "" once `sink` has all of its bytes."""
        try:
            stored = os.fstat(file).st_size
            if stored != size + _TRAILER.size:
                return f"{stored} bytes instead of {size + _TRAILER.size}"
            trailer = system_files.read_at(file, _TRAILER.size, size)
            if trailer[: len(_MAGIC)] != _MAGIC:
                return "the trailer is not a Hearth slice's"
            if _read(file, sink, size) != size:
                return "the file ends early"
            if trailer != _trailer(identity, size, sink.digest()):
                return "the bytes do not match the digest of this slice"
        except OSError as error:
            return str(error)
        return ""

    def _drop(self, name: str, problem: str) -> None:
        """Removes a file that cannot be used; where that fails the slice is only absent."""
        if name not in self._refused:
            self._refused.add(name)
            log.warning("cache: dropping %s (%s): it will be fetched again", name, problem)
        with contextlib.suppress(OSError):  # for example a read-only disk, or a folder
            self._folder.unlink(name)

    def _open_part(self, identity: bytes, size: int) -> Part:
        shared = f"{identity.hex()}.part"
        file = self._shared_part(shared)
        if file is not None:
            try:
                system_files.lock(file)
                # Its writer may have finished and renamed it before the lock was taken.
                if self._folder.names(shared, file):
                    return Part(self._folder, shared, identity, file, size, private=False)
            except OSError:
                pass  # another process is writing this slice
            os.close(file)
        own = f"{identity.hex()}.{os.getpid()}-{secrets.token_hex(4)}.part"
        file = self._folder.create(own)
        system_files.lock(file)
        return Part(self._folder, own, identity, file, size, private=True)

    def _shared_part(self, name: str) -> int | None:
        """Opens a part, or makes it; None where something else has its name and stays."""
        for _ in range(2):
            try:
                return self._folder.open_or_create(name)
            except ForeignFileError as error:
                self._drop(name, error.problem)
        return None

    def _files(self) -> list[tuple[str, int, float]]:
        """(name, bytes, last use) of every slice and part."""
        return self._folder.files(".slice", ".part")

    def _remove_old(self) -> None:
        """Removes the slices of earlier versions, which would never be used again."""
        for name, size, _ in self._files():
            with contextlib.suppress(OSError):
                file = self._folder.open(name)
                try:
                    end = max(0, size - _TRAILER.size)
                    magic = system_files.read_at(file, len(_OLD_MAGIC), end)
                finally:
                    os.close(file)
                if magic == _OLD_MAGIC:
                    self._folder.unlink(name)

    def _make_room(self, identity: bytes, size: int) -> bool:
        """Evicts slices until `size` more bytes fit the limit; False if they cannot."""
        free = self._folder.free_bytes()
        if free < size + _SPARE_BYTES:
            self._warn_full(f"the disk has only {format_size(free)} free")
            return False
        if self.limit_bytes is None:
            return True
        own = identity.hex()
        files = [item for item in self._files() if item[0].partition(".")[0] != own]
        used = sum(bytes_ for _, bytes_, _ in files)
        for name, bytes_, _ in sorted(files, key=lambda item: item[2]):
            if used + size <= self.limit_bytes:
                break
            if name.partition(".")[0] in self._pinned or self._written(name):
                continue
            with contextlib.suppress(OSError):
                self._folder.unlink(name)
            used -= bytes_
        if used + size > self.limit_bytes:
            self._warn_full(
                f"the limit is {format_size(self.limit_bytes)}, and the slices of this plan alone "
                "need more"
            )
            return False
        return True

    def _written(self, name: str) -> bool:
        """True if a process is writing this file; finished slices have no writer."""
        return name.endswith(".part") and self._folder.locked(name)

    def _warn_full(self, why: str) -> None:
        if not self._full_warned:
            self._full_warned = True
            log.warning("cache %s is full: %s; continuing without caching", self.folder, why)


def _read(file: int, sink: Sink, size: int) -> int:
    """Reads the first `size` bytes, or up to the end of the file; returns the bytes read."""
    done = 0
    while done < size:
        count = system_files.read_into(file, sink.space()[: size - done].data, done)
        if not count:
            break
        sink.filled(count)
        done += count
    return done


def _trailer(identity: bytes, size: int, digest: bytes) -> bytes:
    """The end of a slice's file. digest: of its bytes."""
    return _TRAILER.pack(_MAGIC, size, xxhash.xxh3_128_digest(digest + identity))
