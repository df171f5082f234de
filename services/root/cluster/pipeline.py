"""Takes steps through the stages behind the root's own, several steps at once.

Each leg of the way is a thread, which works on one step after another. So steps stay in order, and
end in the order in which they began.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from hearth.common.errors import HearthError
from hearth.root.cluster.stepping import StepRun
from hearth.root.scheduling.batch import StepOutput

# Does one leg of a step's way: from the encoded activations before it to those after it.
Leg = Callable[[StepRun, bytes], bytes]


class Pipeline:
    """Steps in flight. `push` is for one thread; the others are for any."""

    def __init__(
        self,
        legs: Sequence[Leg],
        finish: Callable[[StepRun], StepOutput],
        failed: Callable[[Exception], Exception],
    ) -> None:
        """finish: the output of a step after its last leg. failed: the error of a step that failed.

        Both are called in a leg's thread, and may raise and return any error.
        """
        self._legs = tuple(legs)
        self._finish = finish
        self._failed = failed
        self._changed = threading.Lock()
        # By step: when it began, by time.monotonic(); oldest first.
        self._pending: dict[StepRun, float] = {}
        self._ended_at = 0.0
        self._queues: list[queue.SimpleQueue[tuple[StepRun, bytes] | None]] = [
            queue.SimpleQueue() for _ in legs
        ]
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"leg-{number}", daemon=True)
            for number in range(len(legs))
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, run: StepRun) -> None:
        """A step begins on the root; `push` follows, or `drop`."""
        with self._changed:
            self._pending[run] = time.monotonic()

    def push(self, run: StepRun, activations: bytes) -> None:
        """The step goes on after the root's stage."""
        self._queues[0].put((run, activations))

    def drop(self, run: StepRun, error: Exception) -> None:
        """The step failed."""
        with self._changed:
            known = self._pending.pop(run, None) is not None
            self._ended_at = time.monotonic()
        if known:
            run.future.set_exception(error)

    @property
    def oldest(self) -> float | None:
        """When the oldest step in flight began (time.monotonic()); None without one."""
        with self._changed:
            return next(iter(self._pending.values()), None)

    @property
    def waiting_since(self) -> float | None:
        """When the oldest step in flight became the oldest; None without one."""
        oldest = self.oldest
        return None if oldest is None else max(oldest, self._ended_at)

    def fail(self, error: HearthError) -> None:
        """Ends all steps in flight with `error`."""
        with self._changed:
            pending, self._pending = self._pending, {}
        for run in pending:
            run.future.set_exception(error.copy())

    def close(self) -> None:
        """Ends the threads. Nothing may block them any more: the links are closed."""
        for inbox in self._queues:
            inbox.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _work(self, number: int) -> None:
        while (item := self._queues[number].get()) is not None:
            run, activations = item
            item = None
            try:
                activations = self._legs[number](run, activations)
                if number + 1 < len(self._legs):
                    self._queues[number + 1].put((run, activations))
                    continue
                output = self._finish(run)
            except Exception as error:
                self.drop(run, self._failed(error))
                continue
            with self._changed:
                known = self._pending.pop(run, None) is not None
                self._ended_at = time.monotonic()
            if known:
                run.future.set_result(output)
