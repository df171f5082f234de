"""Graceful shutdown of a worker: no step fails.

From its beginning every step result carries `leaving`. The root then divides the model over the
other workers and releases this one. If the others lack the memory, steps continue here until the
time is up, so that running requests can end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# After this long without a step no request is running, and no result would carry `leaving`.
_IDLE_SECONDS = 1.0
_LOOK_SECONDS = 0.05


class Leaving:
    """`step` is called by the computing thread, `wait` by the thread that stops the worker."""

    def __init__(self) -> None:
        # True once shutdown has begun.
        self.begun = False
        self._stepping = False
        self._stepped_at = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Encloses a whole step, including sending its result."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepped_at = time.monotonic()
            self._stepping = False

    def wait(self, held: Callable[[], bool], seconds: float, hurry: threading.Event) -> None:
        """Waits until the worker is no longer `held` or no steps come; at most `seconds`.

        hurry: set to end the wait at once.
        """
        self.begun = True
        began = time.monotonic()
        while held() and (left := began + seconds - time.monotonic()) > 0:
            idle = time.monotonic() - max(began, self._stepped_at)
            if (idle >= _IDLE_SECONDS and not self._stepping) or hurry.wait(
                min(left, _LOOK_SECONDS)
            ):
                return
