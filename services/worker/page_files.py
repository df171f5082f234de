"""KV pages on this node's disk, one file each, found again after a restart (`--kv-cache disk`).

Two threads move the bytes: one writes what was stored, at a bounded rate, and one reads what is
wanted. Files appear by rename, and nothing is synced to disk. A file's digest is checked when it is
read: a damaged, exchanged or foreign file is a miss and is removed. The files used least recently
are removed when the folder is full. Several processes of one user may share the folder, and then
share its limit.

Pages hold their users' text in effect. So only this user can read the files; see own_files.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import struct
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
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

NAME_BYTES = 32
DEFAULT_LIMIT = 8 << 30
# Written at most, in the mean: a fifth of what a cheap SSD writes.
WRITE_BYTES_PER_SECOND = 64 << 20
_HEADER = struct.Struct("<8sQ16s32s")
_MAGIC = b"HEARTHP1"
_SUFFIX, _PART = ".page", ".part"
# Memory for pages that wait to be written, and for those that were read; at least one page each.
_QUEUE_BYTES = 32 << 20
# Left free on the disk for other programs.
_SPARE_BYTES = 64 << 20
# A full folder is emptied to this part of its limit: removing files one by one needs a look at all.
_KEPT = 0.9


class PageMetrics(Protocol):
    """Measurements of a node's page files (hearth.common.metrics)."""

    def stored_page(self, event: str) -> None:
        """event: "stored", "fetched", "missing", "damaged", "removed", "dropped"."""

    def stored_bytes(self, direction: str, count: int) -> None:
        """direction: "written", "read"."""


@dataclass(slots=True)
class _Reading:
    size: int
    # None: still to be read; empty: there is no such page.
    data: Bytes | None = None


class PageFiles:
    """A folder of at most `limit_bytes` of pages. Thread-safe.

    Raises HearthError BAD_SETTING if the folder cannot be used. Later disk errors are logged; the
    page is then just not there.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int | None = None,
        metrics: PageMetrics | None = None,
        bytes_per_second: float = WRITE_BYTES_PER_SECOND,
    ) -> None:
        self.folder = folder
        self._limit = DEFAULT_LIMIT if limit_bytes is None else limit_bytes
        self._metrics = metrics
        self._rate = bytes_per_second
        try:
            self._folder = OwnFolder(folder)
            self._folder.check_writable()
        except OSError as error:
            problem = (
                f"cannot keep KV pages in {folder}: {error.strerror or error}; "
                "choose another --cache-dir, or --kv-cache ram"
            )
            raise HearthError(Reason.BAD_SETTING, problem, {"path": folder}) from None
        self._warned: set[str] = set()
        self._changed = threading.Condition()
        # Sizes by name, as far as this process knows.
        self._files: dict[bytes, int] = {}
        self._used = 0
        # To be written, oldest first.
        self._writing: OrderedDict[bytes, Bytes] = OrderedDict()
        self._queued = 0
        self._reading: dict[bytes, _Reading] = {}
        # True once nothing is stored or read any more; and to stop before the queue is written.
        self._closed = self._hurry = False
        self._look()
        self._threads = [
            threading.Thread(target=self._write_all, name="page-writer", daemon=True),
            threading.Thread(target=self._read_all, name="page-reader", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __contains__(self, name: bytes) -> bool:
        """True if a page of this name is stored, or is about to be."""
        with self._changed:
            return name in self._files or name in self._writing

    @property
    def usage(self) -> tuple[int, int]:
        """(pages, their bytes on disk)."""
        with self._changed:
            return len(self._files), self._used

    def secret(self, name: str, size: int) -> bytes:
        """Random bytes that stay the same for this folder; made where absent or of another size."""
        file = -1
        try:
            file = self._folder.open_or_create(name)
            system_files.lock(file, wait=True)
            found = system_files.read_at(file, size + 1, 0)
            if len(found) != size:
                found = secrets.token_bytes(size)
                os.ftruncate(file, 0)
                system_files.write_at(file, found, 0)
                os.fsync(file)
            return found
        except OSError as error:
            problem = (
                f"cannot keep {name} in {self.folder}: {error.strerror or error}; remove it, or "
                "choose another --cache-dir"
            )
            raise HearthError(Reason.BAD_SETTING, problem, {"path": self.folder}) from None
        finally:
            if file >= 0:
                os.close(file)

    def room(self) -> bool:
        """True if `store` would take another page."""
        with self._changed:
            return self._has_room()

    def wait_room(self, seconds: float) -> bool:
        """Waits until `store` would take another page; False if it does not in time."""
        with self._changed:
            return self._changed.wait_for(self._has_room, seconds)

    def store(self, name: bytes, data: Bytes) -> bool:
        """Writes a page in the background, over an earlier one. False: no room or closed."""
        with self._changed:
            if self._closed or not self._has_room():
                self._count("dropped")
                return False
            before = self._writing.pop(name, None)
            self._queued += len(data) - (0 if before is None else len(before))
            self._writing[name] = data
            self._changed.notify_all()
            return True

    def drop(self, name: bytes) -> None:
        """Removes a page."""
        with self._changed:
            self._unqueue(name)
            self._forget(name)

    def want(self, sizes: dict[bytes, int], seconds: float = 0.0) -> None:
        """Begins to read these pages and gives all others up; waits until one of them is read.

        sizes: bytes of each.
        """
        with self._changed:
            self._reading = {
                name: self._reading.get(name) or _Reading(size) for name, size in sizes.items()
            }
            self._changed.notify_all()
            if seconds > 0 and sizes:
                self._changed.wait_for(self._any_read, seconds)

    def take(self, name: bytes) -> Bytes | None:
        """The bytes of a wanted page; None while it is being read, empty if it is not there."""
        with self._changed:
            reading = self._reading.get(name)
            if reading is None or reading.data is None:
                return None
            del self._reading[name]
            self._changed.notify_all()
            return reading.data

    def close(self, seconds: float = 5.0) -> None:
        """Writes what is queued, for at most `seconds`, and ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._threads[0].join(seconds)
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._folder.close()

    def _has_room(self) -> bool:
        return not self._writing or self._queued < _QUEUE_BYTES

    def _any_read(self) -> bool:
        return self._closed or any(item.data is not None for item in self._reading.values())

    # In the writer's thread.

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._writing)
                if not self._writing or self._hurry:
                    return
                name, data = next(iter(self._writing.items()))
            began = time.monotonic()
            written = self._write(name, data)
            with self._changed:
                if self._writing.get(name) is data:
                    self._unqueue(name)
                    if written:
                        self._used += _HEADER.size + len(data) - self._files.get(name, 0)
                        self._files[name] = _HEADER.size + len(data)
                elif written and name not in self._writing:
                    self._forget(name)  # it was dropped meanwhile
                self._changed.notify_all()
                until = began + len(data) / self._rate
                while not self._closed and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)

    def _write(self, name: bytes, data: Bytes) -> bool:
        part = f"{name.hex()}.{os.getpid()}-{secrets.token_hex(4)}{_PART}"
        size = _HEADER.size + len(data)
        try:
            if not self._make_room(size):
                self._count("dropped")
                return False
            file = self._folder.create(part)
            try:
                system_files.lock(file)
                _write(file, _HEADER.pack(_MAGIC, len(data), _digest(name, data), name))
                _write(file, data.data)
                if not system_files.OPEN_FILES_MOVE:
                    os.close(file)
                    file = -1
                self._folder.rename(part, name.hex() + _SUFFIX)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._folder.unlink(part)
                raise
            finally:
                if file >= 0:
                    os.close(file)
        except OSError as error:
            self._warn(f"cannot write to {self.folder}: {error.strerror or error}")
            self._count("dropped")
            return False
        self._count("stored")
        if self._metrics is not None:
            self._metrics.stored_bytes("written", size)
        return True

    def _make_room(self, size: int) -> bool:
        """Removes the pages used least recently until `size` more bytes fit; False if none do."""
        free = self._folder.free_bytes()
        if free < size + _SPARE_BYTES:
            self._warn(f"the disk of {self.folder} has only {format_size(free)} free")
            return False
        if size > self._limit:
            self._warn(
                f"--kv-cache-size is {format_size(self._limit)}, and one page {format_size(size)}"
            )
            return False
        with self._changed:
            if self._used + size <= self._limit:
                return True
        files = self._look()
        most = max(0, int(self._limit * _KEPT) - size)
        used = sum(bytes_ for _, bytes_, _ in files)
        for name, bytes_, _ in sorted(files, key=lambda item: item[2]):
            if used <= most:
                break
            with self._changed:
                self._forget(name)
            self._count("removed")
            used -= bytes_
        return True

    def _look(self) -> list[tuple[bytes, int, float]]:
        """(name, bytes, time of last use) of each page in the folder; removes what writers left."""
        found = []
        try:
            for file, size, when in self._folder.files(_SUFFIX, _PART):
                name = _name(file)
                if name is not None:
                    found.append((name, size, when))
                elif file.endswith(_PART) and not self._folder.locked(file):
                    self._folder.unlink(file)
        except OSError as error:
            self._warn(f"cannot look into {self.folder}: {error.strerror or error}")
        with self._changed:
            self._files = {name: size for name, size, _ in found}
            self._used = sum(self._files.values())
        return found

    # In the reader's thread.

    def _read_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                name = self._next()
                if self._closed or name is None:
                    return
                reading = self._reading[name]
                queued = self._writing.get(name)
            data = self._read(name, reading.size) if queued is None else queued
            with self._changed:
                reading.data = data
                self._changed.notify_all()

    def _next(self) -> bytes | None:
        """The next page to read, unless enough wait to be taken."""
        held = sum(len(item.data) for item in self._reading.values() if item.data is not None)
        if held >= _QUEUE_BYTES:
            return None
        return next((name for name, item in self._reading.items() if item.data is None), None)

    def _read(self, name: bytes, size: int) -> Bytes:
        """The bytes of a page of `size` bytes; empty if there is none."""
        shown = name.hex() + _SUFFIX
        try:
            file = self._folder.open(shown)
        except FileNotFoundError:
            self._count("missing")
            self.drop(name)
            return _NOTHING
        except ForeignFileError as error:
            self._refuse(name, error.problem)
            return _NOTHING
        except OSError as error:
            self._warn(f"cannot open {shown} in {self.folder}: {error.strerror or error}")
            self._count("missing")
            return _NOTHING
        try:
            data = _content(file, name, size)
            with contextlib.suppress(OSError):
                system_files.touch(file)  # pages are removed by the time of last use
        except (OSError, ValueError) as error:
            self._refuse(name, str(error))
            return _NOTHING
        finally:
            os.close(file)
        self._count("fetched")
        if self._metrics is not None:
            self._metrics.stored_bytes("read", _HEADER.size + size)
        return data

    def _refuse(self, name: bytes, problem: str) -> None:
        log.warning(
            "KV pages on disk: removing %s%s (%s): it will be computed again",
            name.hex(),
            _SUFFIX,
            problem,
        )
        self._count("damaged")
        self.drop(name)

    # With `_changed` held.

    def _unqueue(self, name: bytes) -> None:
        data = self._writing.pop(name, None)
        if data is not None:
            self._queued -= len(data)

    def _forget(self, name: bytes) -> None:
        self._used -= self._files.pop(name, 0)
        with contextlib.suppress(OSError):  # absent, on a read-only disk, or a folder
            self._folder.unlink(name.hex() + _SUFFIX)

    # In any thread.

    def _count(self, event: str) -> None:
        if self._metrics is not None:
            self._metrics.stored_page(event)

    def _warn(self, problem: str) -> None:
        """Logs a problem with the disk, each once."""
        if problem.partition(":")[0] not in self._warned:
            self._warned.add(problem.partition(":")[0])
            log.warning("KV pages on disk: %s; going on without those pages", problem)


_NOTHING: Bytes = np.empty(0, np.uint8)


def _name(file: str) -> bytes | None:
    """The page's name of a file's, None for another file."""
    text = file.removesuffix(_SUFFIX)
    if not file.endswith(_SUFFIX) or len(text) != 2 * NAME_BYTES:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


def _digest(name: bytes, data: Bytes) -> bytes:
    digest = xxhash.xxh3_128(name)
    digest.update(data.data)
    return digest.digest()


def _write(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _content(file: int, name: bytes, size: int) -> Bytes:
    """The checked bytes of an open file. Raises ValueError with the difference, OSError."""
    stored = os.fstat(file).st_size
    if stored != _HEADER.size + size:
        raise ValueError(f"{stored} bytes instead of {_HEADER.size + size}")
    header = system_files.read_at(file, _HEADER.size, 0)
    data = np.empty(size, np.uint8)
    done = 0
    while done < size:
        count = system_files.read_into(file, data[done:].data, _HEADER.size + done)
        if not count:
            raise ValueError("the file ends early")
        done += count
    if header != _HEADER.pack(_MAGIC, size, _digest(name, data), name):
        raise ValueError("the bytes do not match the digest of this page")
    return data
