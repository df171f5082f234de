"""Files, as systems differ: flags, locks, reads at an offset, owners, folders held open.

What a system lacks is left out. Without owners and modes every file passes (Windows' profiles have
access lists); without locks this process counts as the only one.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _flag(name: str) -> int:
    return int(getattr(os, name, 0))


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# For every file: closed in child processes, and bytes as they are.
PLAIN = _flag("O_CLOEXEC") | _flag("O_BINARY")
# A link is not followed, and opening a FIFO does not wait for its other end.
AS_IT_IS = PLAIN | _flag("O_NOFOLLOW") | _flag("O_NONBLOCK")
# An open file can be renamed and removed.
OPEN_FILES_MOVE = sys.platform != "win32"
# Folders can be opened, and files named relative to them.
_FOLDERS_OPEN = (
    hasattr(os, "O_DIRECTORY")
    and {os.open, os.unlink, os.rename, os.stat, os.mkdir} <= os.supports_dir_fd
    and {os.scandir, os.stat} <= os.supports_fd
)
# Far behind all content, where Windows locks a byte: a lock there keeps others from reading it.
_LOCKED_BYTE = 1 << 40
# Between two attempts there: its own way to wait gives up after ten seconds.
_LOCK_SECONDS = 0.1
# The group or others may write.
_OTHERS_WRITE = 0o022
_fcntl, _msvcrt = _module("fcntl"), _module("msvcrt")
# Held while a file's position is another one.
_moving = threading.Lock()


def open_at_once(path: str, flags: int) -> int:
    """An opener for `open`: what is not a regular file is not waited for."""
    return os.open(path, flags | _flag("O_NONBLOCK"))


def lock(file: int, *, wait: bool = False) -> None:
    """Lock an open file against other processes, until it is closed.

    Raises OSError if another one has it, unless `wait`.
    """
    if _fcntl is not None:
        _fcntl.flock(file, _fcntl.LOCK_EX if wait else _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    elif _msvcrt is not None:
        while not _lock_byte(file, wait):
            time.sleep(_LOCK_SECONDS)


def read_into(file: int, view: memoryview, offset: int) -> int:
    """Fill `view` with the bytes at `offset`, or a part of it; the count, 0 at the end."""
    if hasattr(os, "preadv"):
        return os.preadv(file, [view], offset)
    data = read_at(file, len(view), offset)
    view[: len(data)] = data
    return len(data)


def read_at(file: int, size: int, offset: int) -> bytes:
    """At most `size` bytes at `offset`."""
    if hasattr(os, "pread"):
        return os.pread(file, size, offset)
    with _at(file, offset):
        return os.read(file, size)


def write_at(file: int, data: bytes | memoryview, offset: int) -> int:
    """Write `data` at `offset`, or a part of it; the count."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, offset)
    with _at(file, offset):
        return os.write(file, data)


def drop_from_memory(file: int) -> bool:
    """Let the next read of a synced file come from its disk; False where that cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def touch(file: int) -> None:
    """Set the time of an open file's last change to now. Raises OSError."""
    if os.utime in os.supports_fd:
        os.utime(file)


def user() -> int | None:
    """This user's number; None on systems whose files have no owners."""
    try:
        return os.geteuid()
    except AttributeError:
        return None


def foreign(status: os.stat_result) -> str:
    """The reason that a file or folder may not be this user's own work, "" otherwise."""
    own = user()
    if own is None:
        return ""
    if status.st_uid != own:
        return f"it belongs to user {status.st_uid}, and this is user {own}"
    if status.st_mode & _OTHERS_WRITE:
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def has_modes() -> bool:
    """True on systems whose files have modes that mean something."""
    return user() is not None


def make_private(file: int) -> None:
    """Let only the owner read and write an open file."""
    if has_modes() and hasattr(os, "fchmod"):
        os.fchmod(file, 0o600)


def sync_folder(path: Path) -> None:
    """Let a rename in a folder survive a crash, where the system can."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Folder:
    """A folder, held open where the system can: its files stay the same when its path changes.

    Every method may raise OSError.
    """

    def __init__(self, path: Path, file: int | None = None) -> None:
        """file: the folder's descriptor; None opens it."""
        self._path = path
        if file is None and _FOLDERS_OPEN:
            file = os.open(path, os.O_RDONLY | PLAIN | _flag("O_DIRECTORY"))
        self._file = file

    def close(self) -> None:
        """Close the folder; nothing in it can be used any more."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def status(self) -> os.stat_result:
        return os.stat(self._path if self._file is None else self._file)

    def inner(self, name: str) -> Folder:
        """A folder in this one, made if it is absent; this one is closed."""
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._named(name), 0o700, **self._at())
            if self._file is None:
                return Folder(self._path / name)
            return Folder(self._path / name, self.open(name, os.O_RDONLY | _flag("O_DIRECTORY")))
        finally:
            self.close()

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a file, not of what a link names; a new one is this user's alone."""
        if not _flag("O_NOFOLLOW") and (self._path / name).is_symlink():
            raise OSError(errno.ELOOP, "a symbolic link", name)
        return os.open(self._named(name), flags | AS_IT_IS, 0o600, **self._at())

    def unlink(self, name: str) -> None:
        os.unlink(self._named(name), **self._at())

    def rename(self, name: str, to: str) -> None:
        """Rename a file; another one of the new name is replaced."""
        at = {} if self._file is None else {"src_dir_fd": self._file, "dst_dir_fd": self._file}
        os.replace(self._named(name), self._named(to), **at)

    def stat(self, name: str) -> os.stat_result:
        """The state of a file, or of a link itself."""
        return os.stat(self._named(name), follow_symlinks=False, **self._at())

    def files(self) -> list[tuple[str, os.stat_result]]:
        """(name, state) of everything in the folder."""
        found = []
        with os.scandir(self._path if self._file is None else self._file) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
        return found

    def free_bytes(self) -> int:
        """Bytes that this user may still write to the folder's disk."""
        return shutil.disk_usage(self._path if self._file is None else self._file).free

    def _named(self, name: str) -> str:
        return name if self._file is not None else str(self._path / name)

    def _at(self) -> dict[str, Any]:
        return {} if self._file is None else {"dir_fd": self._file}


def _lock_byte(file: int, wait: bool) -> bool:
    """Try once; False if another process has the lock and this one may `wait`. Raises OSError.

    Not for longer: the position of the file is another one meanwhile.
    """
    with _at(file, _LOCKED_BYTE):
        try:
            _msvcrt.locking(file, _msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if not wait or error.errno != errno.EACCES:
                raise
            return False
    return True


@contextlib.contextmanager
def _at(file: int, offset: int) -> Iterator[None]:
    """Another position of an open file, for one call of this process."""
    with _moving:
        before = os.lseek(file, 0, os.SEEK_CUR)
        os.lseek(file, offset, os.SEEK_SET)
        try:
            yield
        finally:
            os.lseek(file, before, os.SEEK_SET)
