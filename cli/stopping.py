"""SIGTERM and SIGINT, as the services and the long commands take them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hearth.common import system

# A signal may be given to a thread that does not wake the main one, so it looks now and then.
_LOOK_SECONDS = 0.5


class StopSignals:
    """Events that signals set: the first one requests a stop, a second one a hurry.

    Made in the main thread.
    """

    def __init__(self, *, exits: bool = False) -> None:
        """exits: a hurry ends the process with 128 + the signal's number, as SystemExit.

        So does the first signal until `ready` is set.
        """
        self.requested = threading.Event()
        self.hurry = threading.Event()
        self.ready = not exits
        self._exits = exits
        for each in system.stop_signals():
            signal.signal(each, self._handle)

    def wait(self) -> None:
        """Return when a stop is requested."""
        while not self.requested.wait(_LOOK_SECONDS):
            pass

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.ready or self.requested.is_set():
            self.hurry.set()
            if self._exits:
                raise SystemExit(128 + number)
        self.requested.set()


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM too, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
