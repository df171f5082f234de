"""Files of a folder that only this user may have written.

Everything is opened relative to the folder's descriptor and without following links, then looked
at. For folders in which others may have left something, on purpose or not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import weakref
from pathlib import Path

# A link is not followed, and opening a FIFO does not wait for its other end.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# Errors of opening what is not a regular file: links, folders, FIFOs and devices without a driver.
_NOT_A_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV})


class ForeignFileError(OSError):
    """A file that is not this user's own regular file."""

    def __init__(self, problem: str) -> None:
        super().__init__(errno.EPERM, problem)
        self.problem = problem


class OwnFolder:
    """A folder, held open. Every method may raise OSError."""

    def __init__(self, path: Path) -> None:
        """Makes the folder if it is absent.

        In a folder of the superuser's, as container platforms mount volumes, this user's own folder
        is used. Raises ForeignFileError if it belongs to another user, or others may write to it.
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A path with symbolic links is the user's choice; the folder it leads to is checked.
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        user = os.geteuid()
        if user != 0 and os.fstat(descriptor).st_uid == 0:
            descriptor = _inner(descriptor, f"user-{user}")
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        _check_folder(os.fstat(descriptor))

    def close(self) -> None:
        """Close the folder; nothing in it can be used any more."""
        self._close()

    def open(self, name: str) -> int:
        """A descriptor to read a file. Raises FileNotFoundError, or ForeignFileError."""
        return self._checked(name, os.O_RDONLY)

    def open_or_create(self, name: str) -> int:
        """A descriptor to read and write a file, made if absent. Raises ForeignFileError."""
        file = self._checked(name, os.O_RDWR | os.O_CREAT)
        if os.fstat(file).st_nlink > 1:
            os.close(file)
            raise ForeignFileError("it has a second name (a hard link)")
        return file

    def create(self, name: str) -> int:
        """A descriptor to read and write a new file."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS
        return os.open(name, flags, 0o600, dir_fd=self._descriptor)

    def check_writable(self) -> None:
        """Make a file, and remove it."""
        name = f".probe-{os.getpid()}-{secrets.token_hex(4)}"
        os.close(self.create(name))
        self.unlink(name)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._descriptor)

    def rename(self, name: str, to: str) -> None:
        os.rename(name, to, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def has_file(self, name: str) -> bool:
        """True if there is a regular file of this name."""
        try:
            return stat.S_ISREG(self._status(name).st_mode)
        except OSError:
            return False

    def names(self, name: str, file: int) -> bool:
        """True if `name` is the open file's name now."""
        try:
            return os.path.samestat(os.fstat(file), self._status(name))
        except FileNotFoundError:
            return False

    def locked(self, name: str) -> bool:
        """True if a process has locked the file, or it cannot be opened."""
        try:
            file = self.open(name)
        except ForeignFileError:
            return False  # nothing of ours
        except OSError:
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except OSError:
            return True
        finally:
            os.close(file)

    def files(self, *suffixes: str) -> list[tuple[str, int, float]]:
        """(name, bytes, time of the last change) of each file with one of the suffixes."""
        found = []
        with os.scandir(self._descriptor) as entries:
            for entry in entries:
                if entry.name.endswith(suffixes):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found.append((entry.name, status.st_size, status.st_mtime))
        return found

    def free_bytes(self) -> int:
        """Bytes that this user may still write to the folder's disk."""
        status = os.fstatvfs(self._descriptor)
        return status.f_bavail * status.f_frsize

    def _status(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)

    def _checked(self, name: str, flags: int) -> int:
        try:
            file = os.open(name, flags | _FLAGS, 0o600, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
            link = error.errno == errno.ELOOP
            raise ForeignFileError("a symbolic link" if link else "not a regular file") from None
        problem = _foreign(os.fstat(file))
        if problem:
            os.close(file)
            raise ForeignFileError(problem)
        return file


def _inner(outer: int, name: str) -> int:
    """A descriptor of a folder in another, whose descriptor is closed."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=outer)
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, dir_fd=outer)
    except NotADirectoryError:
        raise ForeignFileError(f"{name} in it is not a folder") from None
    finally:
        os.close(outer)


def _check_folder(status: os.stat_result) -> None:
    user, mode = os.geteuid(), stat.S_IMODE(status.st_mode)
    if status.st_uid != user:
        raise ForeignFileError(f"it belongs to user {status.st_uid}, and this is user {user}")
    if mode & 0o022:
        raise ForeignFileError(f"others may write to it (mode {mode:o}): run chmod go-w on it")


def _foreign(status: os.stat_result) -> str:
    """The reason that an open file may not be this user's own work, "" otherwise."""
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}"
    if status.st_mode & 0o022:
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return ""
