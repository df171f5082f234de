"""Values read from files that are read again when one of them changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from hearth.common.errors import HearthError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Reread(Generic[T]):
    """A value read from files, and read again when one of them changes. Thread-safe.

    Construction raises the errors of `read`. A later error is logged; the value is then
    `without(last value)`, and without that function the last value stays in use.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], T],
        without: Callable[[T], T] | None = None,
    ) -> None:
        self._paths = paths
        self._read = read
        self._without = without
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._value = read()

    def get(self) -> T:
        """The value of the files as they are now."""
        stamp = self._look()
        with self._lock:
            if stamp != self._stamp:
                self._stamp = stamp
                self._renew()
            return self._value

    def _renew(self) -> None:
        try:
            self._value = self._read()
        except HearthError as error:
            if self._without is None:
                log.error("the previous version stays in use: %s", error)
            else:
                self._value = self._without(self._value)
                log.error("what cannot be read admits nobody: %s", error)
        else:
            log.info("%s changed: read again", ", ".join(map(str, self._paths)))

    def _look(self) -> list[tuple[int, ...]]:
        """Stamps of the files; an empty one for a file that cannot be found."""
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino, stat.st_mode)
