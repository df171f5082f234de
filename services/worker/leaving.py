"""Graceful stop of a worker: no step fails.

From then on every result of a step carries `leaving`. The root divides the model over the others,
where they have the room, and releases this worker. Where they have not, steps go on here, so that
running requests can end, until the time is up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Without a step for so long no request runs, and no result would carry `leaving`.
_IDLE_SECONDS = 1.0
_LOOK_SECONDS = 0.05


class Leaving:
    """`step` is for the thread that computes, `wait` for the one that stops the worker."""

    def __init__(self) -> None:
        # Whether the worker is about to stop.
        self.begun = False
        self._stepping = False
        self._stepped_at = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around all of a step, its answer too."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepped_at = time.monotonic()
            self._stepping = False

    def wait(self, held: Callable[[], bool], seconds: float, hurry: threading.Event) -> None:
        """Waits until the worker is not `held` any more, or no steps come; `seconds` at most.

        hurry: set when there is no time for that.
        """
        self.begun = True
        began = time.monotonic()
        while held() and (left := began + seconds - time.monotonic()) > 0:
            idle = time.monotonic() - max(began, self._stepped_at)
            if (idle >= _IDLE_SECONDS and not self._stepping) or hurry.wait(
                min(left, _LOOK_SECONDS)
            ):
                return
