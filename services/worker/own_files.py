"""Files of a folder that only this user may have written.

Everything is opened relative to the folder's descriptor and without following links, then looked
at. For folders in which others may have left something, on purpose or not.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import weakref
from pathlib import Path

from hearth.common import system_files
from hearth.common.system_files import Folder

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
        folder = Folder(path)
        user = system_files.user()
        if user and folder.status().st_uid == 0:
            folder = _inner(folder, f"user-{user}")
        self._folder = folder
        self._close = weakref.finalize(self, folder.close)
        problem = system_files.foreign(folder.status())
        if problem:
            advice = ": run chmod go-w on it" if "others" in problem else ""
            raise ForeignFileError(f"{problem}{advice}")

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
        return self._folder.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def check_writable(self) -> None:
        """Make a file, and remove it."""
        name = f".probe-{os.getpid()}-{secrets.token_hex(4)}"
        os.close(self.create(name))
        self.unlink(name)

    def unlink(self, name: str) -> None:
        self._folder.unlink(name)

    def rename(self, name: str, to: str) -> None:
        self._folder.rename(name, to)

    def has_file(self, name: str) -> bool:
        """True if there is a regular file of this name."""
        try:
            return stat.S_ISREG(self._folder.stat(name).st_mode)
        except OSError:
            return False

    def names(self, name: str, file: int) -> bool:
        """True if `name` is the open file's name now."""
        try:
            return os.path.samestat(os.fstat(file), self._folder.stat(name))
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
            system_files.lock(file)
            return False
        except OSError:
            return True
        finally:
            os.close(file)

    def files(self, *suffixes: str) -> list[tuple[str, int, float]]:
        """(name, bytes, time of the last change) of each file with one of the suffixes."""
        return [
            (name, status.st_size, status.st_mtime)
            for name, status in self._folder.files()
            if name.endswith(suffixes)
        ]

    def free_bytes(self) -> int:
        """Bytes that this user may still write to the folder's disk."""
        return self._folder.free_bytes()

    def _checked(self, name: str, flags: int) -> int:
        try:
            file = self._folder.open(name, flags)
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
            link = error.errno == errno.ELOOP
            raise ForeignFileError("a symbolic link" if link else "not a regular file") from None
        status = os.fstat(file)
        regular = stat.S_ISREG(status.st_mode)
        problem = system_files.foreign(status) if regular else "not a regular file"
        if problem:
            os.close(file)
            raise ForeignFileError(problem)
        return file


def _inner(outer: Folder, name: str) -> Folder:
    """A folder in another, which is closed."""
    try:
        return outer.inner(name)
    except NotADirectoryError:
        raise ForeignFileError(f"{name} in it is not a folder") from None
