"""Open model files: reads at absolute offsets, and changes of a file while it is open."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hearth.common import system_files
from hearth.converter.errors import ModelError

Bytes = npt.NDArray[np.uint8]


_POINTER = b"version https://git-lfs.github.com/spec/"


def check_pointer(path: Path, content: bytes) -> None:
    """Raise ModelError for a file that only stands for another one. content: its first bytes."""
    if content.startswith(_POINTER):
        raise ModelError(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in "
            f"{path.parent}, or `hearth pull` the model"
        )


class FileChangedError(ModelError):
    """A model's file changed while the model was open: its old weights cannot be read any more."""


@dataclass(frozen=True, slots=True)
class FileState:
    """Facts about a file that change when its content does. Times in nanoseconds.

    ctime is set by the kernel at every write and cannot be set by a program, as mtime can.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def difference(self, now: "FileState") -> str:
        """The first difference that a person understands, for messages."""
        if self.size != now.size:
            return f"it had {self.size} bytes and has {now.size}"
        if self.mtime_ns != now.mtime_ns:
            return f"modified {_moment(self.mtime_ns)}, then {_moment(now.mtime_ns)}"
        if self.ctime_ns != now.ctime_ns:
            return f"written or replaced {_moment(now.ctime_ns)}, its modification time kept"
        return f"it was inode {self.inode} and is inode {now.inode}"


class OpenFile:
    """A file that any number of threads read at absolute offsets.

    state: when it was opened, or when its content was last found unchanged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | system_files.PLAIN)
            self.state = self.current()
            first = system_files.read_at(self._descriptor, len(_POINTER), 0)
        except OSError as error:
            raise ModelError(f"cannot open {path}: {error.strerror or error}") from error
        check_pointer(path, first)

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self.state.size

    def fileno(self) -> int:
        return self._descriptor

    def current(self) -> FileState:
        """The state of the open file now; its path may name another one by then."""
        return FileState.of(os.fstat(self._descriptor))

    def replaced(self) -> bool:
        """True where the path names another file by now, or none."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except OSError:
            return True

    def read(self, offset: int, size: int) -> Bytes:
        """Exactly `size` bytes. Raises ModelError as `read_into` does."""
        buffer = np.empty(size, dtype=np.uint8)
        self.read_into(buffer, offset)
        return buffer

    def read_into(self, buffer: Bytes, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`.

        Raises:
            FileChangedError: it has changed since `state`; the bytes may be old or new.
            ModelError: the file is shorter, or cannot be read.
        """
        view = buffer.data
        done = 0
        try:
            while done < len(view):
                count = system_files.read_into(self._descriptor, view[done:], offset + done)
                if count == 0:
                    raise FileChangedError(
                        f"{self.path} ends at byte {offset + done}, {len(view) - done} bytes "
                        "early; it was cut short while in use; restore it"
                    )
                done += count
            now = self.current()  # after the read: a change before it has changed this too
        except OSError as error:
            raise ModelError(f"cannot read {self.path}: {error.strerror or error}") from error
        if now != self.state:
            raise self.changed(now)

    def changed(self, now: FileState) -> FileChangedError:
        """The error for a file that is in the state `now`."""
        return FileChangedError(
            f"{self.path} changed while in use ({self.state.difference(now)}); restart the root "
            "(or this command) to load the new weights, or restore the file"
        )

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _moment(nanoseconds: int) -> str:
    try:
        return datetime.fromtimestamp(nanoseconds / 1e9).isoformat(" ", "milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{nanoseconds} ns after 1970"
