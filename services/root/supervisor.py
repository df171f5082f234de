"""Keeps a cluster formed: forms it again after a loss, and hands the engine its steps."""

import logging
import threading
import time

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster import Cluster
from hearth.root.engine import Engine
from hearth.root.scheduler import Limits

log = logging.getLogger(__name__)

_RETRY_SECONDS = 2.0
# What may pass without anyone changing a setting.
_PASSING = {
    Reason.WORKER_UNREACHABLE,
    Reason.WORKER_BUSY,
    Reason.WORKER_LOST,
    Reason.UNREACHABLE,
    Reason.DEADLINE,
    Reason.PEER_LOST,
    Reason.STREAM_IN_USE,
}


def form_patiently(cluster: Cluster, seconds: float) -> Limits:
    """Forms the cluster, trying for `seconds` what may pass. Raises HearthError."""
    deadline = time.monotonic() + seconds
    said = ""
    while True:
        try:
            return cluster.form()
        except HearthError as error:
            if error.reason not in _PASSING or time.monotonic() + _RETRY_SECONDS > deadline:
                raise
            if error.message != said:
                log.warning("waiting up to %g s: %s", seconds, error.message)
                said = error.message
        time.sleep(_RETRY_SECONDS)


class Supervisor:
    """In its own thread, from `start`, when the cluster has been formed, to `stop`."""

    def __init__(self, cluster: Cluster, engine: Engine) -> None:
        self._cluster = cluster
        self._engine = engine
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._cluster.on_lost = self._lost
        if self._cluster.lost is not None:  # before we listened
            self._lost(self._cluster.lost)

    def stop(self) -> None:
        """Ends a forming that is under way; what serves goes on."""
        self._stopping.set()
        self._wake.set()
        self._cluster.interrupt()
        if self._thread.is_alive():
            self._thread.join()

    def _lost(self, error: HearthError) -> None:
        """Requests end with `error`; new ones are refused until the cluster is back."""
        self._engine.suspend(error)
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._stopping.is_set():
                return
            self._wake.clear()
            limits = self._form_again()
            if limits is not None:
                log.info("the cluster serves again")
                self._engine.resume(limits)

    def _form_again(self) -> Limits | None:
        """What the scheduler may use now; None when told to stop."""
        said = ""
        while not self._stopping.wait(_RETRY_SECONDS):
            try:
                return self._cluster.form()
            except Exception as error:
                # Whatever it was, a root that gives up is of no use to anyone.
                if str(error) != said and not self._stopping.is_set():
                    log.warning("not formed again yet: %s", error or type(error).__name__)
                    said = str(error)
        return None
