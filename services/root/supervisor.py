"""Keeps a cluster formed: forms it, hands the engine its steps, and forms it again after a loss."""

import logging
import threading

from hearth.common.errors import HearthError
from hearth.converter import ModelError
from hearth.root.cluster import Cluster
from hearth.root.engine import Engine
from hearth.root.scheduler import Limits

log = logging.getLogger(__name__)

_RETRY_SECONDS = 2.0


class Supervisor:
    """In its own thread, from `start` to `stop`, after the cluster was formed a first time."""

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

    def _lost(self, error: HearthError) -> None:
        """Requests end with `error`, new ones are refused until then."""
        self._engine.suspend(error)
        self._wake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

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
            except (HearthError, ModelError) as error:
                if str(error) != said:
                    log.warning("not formed again yet: %s", error)
                    said = str(error)
        return None
