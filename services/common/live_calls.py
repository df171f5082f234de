"""Running calls, and their end when the key or certificate that they depend on is revoked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A running call ends when it was found revoked twice, this far apart: an editor that writes a file
# in two parts ends no call.
_LOOK_SECONDS = 0.05

Revocation = Callable[[], str]


class Held:
    """One running call. problem: the reason why it was ended; empty while it may go on."""

    def __init__(self, revocation: Revocation, end: Callable[[], object]) -> None:
        self.revocation = revocation
        self.end = end
        self.doubted = False
        self.problem = ""


class LiveCalls:
    """The calls that run; those whose key or certificate is revoked end within a second.

    Thread-safe.
    """

    def __init__(self, seconds: float = _LOOK_SECONDS) -> None:
        self._seconds = seconds
        self._changed = threading.Lock()
        self._held: set[Held] = set()
        self._watched = False

    @contextmanager
    def hold(self, revocation: Revocation, end: Callable[[], object]) -> Iterator[Held]:
        """Watches a call until the block ends. end: ends the call; called in any thread."""
        held = self.add(revocation, end)
        try:
            yield held
        finally:
            self.remove(held)

    def add(self, revocation: Revocation, end: Callable[[], object]) -> Held:
        """Watches a call until `remove`. revocation: the reason to end it, or empty."""
        held = Held(revocation, end)
        with self._changed:
            self._held.add(held)
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, name="revocation", daemon=True).start()
        return held

    def remove(self, held: Held) -> None:
        """The call has ended."""
        with self._changed:
            self._held.discard(held)

    def _watch(self) -> None:
        """Runs while there are calls."""
        while True:
            time.sleep(self._seconds)
            with self._changed:
                if not self._held:
                    self._watched = False
                    return
                held = list(self._held)
            for call in held:
                self._look(call)

    def _look(self, call: Held) -> None:
        problem = call.revocation()
        if problem and call.doubted and not call.problem:
            call.problem = problem
            with self._changed:
                if call in self._held:
                    call.end()
        call.doubted = bool(problem)
