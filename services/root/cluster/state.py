"""The one owner of "is the cluster serving": a phase, and the transitions between phases.

    Idle -> Forming -> Serving -> Lost -> Idle -> ...      any phase -> Closed, which stays

The board, the supervisor and the engine's pause follow from it; nothing else decides it.
"""

import threading
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.formation import Formation
from hearth.root.cluster.forming import Forming as Attempt


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing runs, because of `error`, until the next attempt."""

    error: HearthError


@dataclass(frozen=True, slots=True)
class Forming:
    """An attempt is under way; nothing runs yet, because of `error`."""

    error: HearthError
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Serving:
    """Steps run on this formation."""

    formation: Formation


@dataclass(frozen=True, slots=True)
class Lost:
    """The formation cannot go on, because of `error`; its leases are not given back yet."""

    error: HearthError
    formation: Formation


@dataclass(frozen=True, slots=True)
class Closed:
    """Nothing will run any more."""

    error: HearthError


Phase = Idle | Forming | Serving | Lost | Closed


class State:
    """The phase. Thread-safe: its lock is held only inside these methods, and nothing is called
    while it is held, so it comes last in every order of locks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase: Phase = Idle(
            HearthError(Reason.CLUSTER_NOT_READY, "the cluster has not been formed")
        )

    @property
    def phase(self) -> Phase:
        """The phase now."""
        return self._phase

    @property
    def lost(self) -> HearthError | None:
        """The reason that nothing runs; None while the cluster serves."""
        phase = self._phase
        return None if isinstance(phase, Serving) else phase.error

    def begin(self, attempt: Attempt) -> None:
        """Idle to Forming. Closed stays."""
        with self._lock:
            if isinstance(self._phase, Idle):
                self._phase = Forming(self._phase.error, attempt)
            elif not isinstance(self._phase, Closed):
                raise self._impossible("begin an attempt")

    def failed(self, error: HearthError | None) -> None:
        """Forming to Idle, with the error that was there before where `error` is None."""
        with self._lock:
            if isinstance(self._phase, Forming):
                self._phase = Idle(error or self._phase.error)
            elif not isinstance(self._phase, Closed):
                raise self._impossible("fail an attempt")

    def serve(self, formation: Formation) -> bool:
        """Forming to Serving; False where the cluster was closed meanwhile."""
        with self._lock:
            if isinstance(self._phase, Forming):
                self._phase = Serving(formation)
                return True
            if not isinstance(self._phase, Closed):
                raise self._impossible("serve")
            return False

    def lose(self, formation: Formation, error: HearthError) -> bool:
        """Serving to Lost; False where `formation` was lost before: the first error counts."""
        with self._lock:
            if not isinstance(self._phase, Serving) or self._phase.formation is not formation:
                return False
            self._phase = Lost(error, formation)
            return True

    def dissolve(self, error: HearthError) -> Formation | None:
        """Serving or Lost to Idle; the formation to be released. `error` counts if none was."""
        with self._lock:
            phase = self._phase
            if isinstance(phase, Serving):
                self._phase = Idle(error)
                return phase.formation
            if isinstance(phase, Lost):
                self._phase = Idle(phase.error)
                return phase.formation
            return None

    def close(self, error: HearthError) -> Formation | None:
        """Any phase to Closed; the formation to be released."""
        with self._lock:
            phase = self._phase
            self._phase = Closed(error if isinstance(phase, Serving) else phase.error)
            return phase.formation if isinstance(phase, Serving | Lost) else None

    def _impossible(self, what: str) -> RuntimeError:
        return RuntimeError(f"cluster: cannot {what} while it is {type(self._phase).__name__}")
