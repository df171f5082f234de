"""One model in memory, of several: who has the turn, loading, and unloading.

    seats (requests that wait)  ->  Host: the oldest request's model is next
    Host: the old model takes no new requests, ends those that it has, leaves; the next is loaded

Requests for the model in memory that come after one for another wait for their next turn, so that
none waits for ever. A change of model is a new cluster with the same workers, which have the slices
of models that they held in their caches.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from hearth.common import system
from hearth.common.errors import HearthError, Reason
from hearth.converter import ModelError
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine import errors
from hearth.root.engine.engine import Engine
from hearth.root.models.relay import Relay
from hearth.root.models.seat import Seat
from hearth.root.supervisor import Supervisor
from hearth.v1 import root_pb2

log = logging.getLogger(__name__)

# The tokenizer of a model that is not in memory keeps its process for so long after a text.
_TOKENIZER_SECONDS = 60.0


@dataclass(frozen=True)
class Loaded:
    """A model with its own cluster, which the supervisor has not formed yet."""

    engine: Engine
    cluster: Cluster
    supervisor: Supervisor


Load = Callable[[Seat], AbstractContextManager[Loaded]]


class Host:
    """Gives the cluster to one seat after the other, from `start` to `stop`, in its own thread."""

    def __init__(self, keep_alive: float, wait_seconds: float, load: Load) -> None:
        """keep_alive: seconds that a model stays in memory without a request; infinite for ever.

        wait_seconds: how long a request waits for its model's turn. load: opens a seat's model.
        """
        self._keep_alive = keep_alive
        self._wait_seconds = wait_seconds
        self._load = load
        self.seats: Sequence[Seat] = ()
        self.relay = Relay(_resting([]))
        self._changed = threading.Condition()
        self._news = False
        self._stopping = False
        # The seat that is in memory or on its way there.
        self._current: Seat | None = None
        self._loader: threading.Thread | None = None
        self._running: Loaded | None = None
        self._stack = ExitStack()
        # Workers taken out on purpose, which stay out when the model changes.
        self._drained: list[str] = []
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    @property
    def current(self) -> Seat | None:
        """The seat whose model is in memory, or is being loaded; None for none."""
        return self._current

    def start(self, seats: Sequence[Seat]) -> None:
        """Goes on in a thread."""
        self.seats = seats
        self._thread.start()

    def stop(self) -> None:
        """Ends a loading that is under way, unloads the model, ends all requests that wait."""
        with self._changed:
            self._stopping = True
            running = self._running
            self._changed.notify_all()
        if running is not None:
            running.supervisor.interrupt()
        if self._thread.is_alive():
            self._thread.join()
        for seat in self.seats:
            seat.close()

    def wake(self) -> None:
        """Something changed. In any thread."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def keep(self, seat: Seat, seconds: float | None) -> None:
        """Sets how long a seat's model stays in memory without a request; 0: not at all.

        None: as long as the root's default.
        """
        seat.keep_alive = seconds
        self.wake()

    def expires(self, seat: Seat) -> float | None:
        """When a model leaves memory if no request comes, seconds from now; None: not in memory."""
        if seat is not self._current:
            return None
        kept = self._kept(seat)
        return kept if seat.busy else max(0.0, seat.idle_since + kept - time.monotonic())

    def drain(self, worker: str, undo: bool) -> Future[root_pb2.ClusterStatus]:
        """Takes a worker out, or lets it in again: see Supervisor.drain."""
        running = self._running
        if running is not None:
            return running.supervisor.drain(worker, undo)
        none: Future[root_pb2.ClusterStatus] = Future()
        problem = "no model is in memory, so no worker has a part of one; ask for a model first"
        none.set_exception(HearthError(Reason.CLUSTER_NOT_READY, problem))
        return none

    def _kept(self, seat: Seat) -> float:
        return self._keep_alive if seat.keep_alive is None else seat.keep_alive

    # In the host's thread.

    def _run(self) -> None:
        while not self._stopping:
            try:
                due = self._turn()
            except Exception:
                log.exception("models: unexpected error")
                due = time.monotonic() + 1.0
            with self._changed:
                if not self._news and not self._stopping:
                    left = max(0.0, due - time.monotonic())
                    wait = None if math.isinf(due) else min(left, threading.TIMEOUT_MAX)
                    self._changed.wait(wait)
                self._news = False
        if self._loader is not None:
            self._loader.join()
        self._unload("the root is shutting down")

    def _turn(self) -> float:
        """Acts on what there is to do; when to look again at the latest, time.monotonic()."""
        dues = [seat.expire(self._wait_seconds) for seat in self.seats]
        dues += [seat.rest_tokenizer(_TOKENIZER_SECONDS) for seat in self.seats]
        due = min((each for each in dues if each is not None), default=math.inf)
        if self._loader is not None:
            if self._loader.is_alive():
                return due
            self._loader = None
        wanted = [(seat.wanted_since, seat) for seat in self.seats]
        waiting = [(since, seat) for since, seat in wanted if since is not None]
        following = min(waiting, key=lambda each: each[0])[1] if waiting else None
        current = self._current
        if current is not None:
            if following is None or following is current:
                current.stay()
                leaves = current.idle_since + self._kept(current)
                if not current.busy and leaves <= time.monotonic():
                    if current.leave():  # a request came meanwhile
                        return time.monotonic()
                    self._unload("it was not used for its --keep-alive")
                    return time.monotonic()
                return due if current.busy else min(due, leaves)
            current.leave()
            if current.busy:
                following.rest(f"{current.card.name} is in memory and ends its answers first")
                return due
            self._unload(f"{following.card.name} takes its turn")
        if following is not None:
            self._current = following
            self._loader = threading.Thread(
                target=self._load_seat, args=(following,), name="loading", daemon=True
            )
            self._loader.start()
        return due

    def _unload(self, why: str) -> None:
        seat = self._current
        if seat is None:
            return
        log.info("%s leaves memory: %s", seat.card.name, why)
        self._drained = _drained(self.relay.status())
        self._current = None
        self._running = None
        seat.detach(f"the model is not in memory: {why}")
        seat.keep_alive = None
        self.relay.rest(_resting(self._drained))
        self._free()

    def _free(self) -> None:
        """Closes the model's cluster and gives its memory back now, before there is another."""
        self._stack.close()
        # Cluster and supervisor refer to each other, and so to the weights.
        gc.collect()
        system.trim_memory()

    # In the loader's thread.

    def _load_seat(self, seat: Seat) -> None:
        log.info("loading %s", seat.card.name)
        began = time.monotonic()
        try:
            seat.open()
            running = self._stack.enter_context(self._load(seat))
            with self._changed:
                if self._stopping:
                    raise errors.shutting_down()
                self._running = running
            seat.relay.follow(running.cluster)
            self.relay.follow(running.cluster)
            self._take_out(running.supervisor)  # those listed, before they get slices
            running.supervisor.form_first()
            running.supervisor.start()
            self._take_out(running.supervisor)  # those discovered too, which are known now
            seat.attach(running.engine)
        except (HearthError, ModelError) as error:
            log.warning("%s was not loaded: %s", seat.card.name, error)
            self._give_up(seat, error)
        except Exception as error:
            log.exception("%s was not loaded", seat.card.name)
            self._give_up(seat, error)
        else:
            log.info("%s is in memory after %.1f s", seat.card.name, time.monotonic() - began)
        self.wake()

    def _take_out(self, supervisor: Supervisor) -> None:
        for worker in self._drained:
            supervisor.drain(worker)  # not waited for: it may be away

    def _give_up(self, seat: Seat, error: Exception) -> None:
        if not isinstance(error, HearthError):
            reason = Reason.MODEL_ERROR if isinstance(error, ModelError) else Reason.INTERNAL
            error = HearthError(reason, f"{seat.card.name} cannot be loaded: {error}")
        self._running = self._current = None
        seat.detach(f"the model could not be loaded: {error.message}")
        self.relay.rest(_resting(self._drained))
        self._free()
        seat.fail(error)


class HostShelf:
    """The host by the names of its models, as the faces see it (hearth.root.api.models.Shelf)."""

    def __init__(self, host: Host, seats: Mapping[str, Seat]) -> None:
        self._host = host
        self._seats = seats

    @property
    def loaded(self) -> str | None:
        """The name of the model in memory, or on its way there."""
        current = self._host.current
        return None if current is None else current.card.name

    def open(self, name: str) -> None:
        """Loads a model's tokenizer. Raises ModelError."""
        self._seats[name].open()

    def keep(self, name: str, seconds: float | None) -> None:
        """Sets how long a model stays in memory without a request."""
        self._host.keep(self._seats[name], seconds)

    def expires(self, name: str) -> float | None:
        """Seconds until a model leaves memory; None where it is not there."""
        seat = self._seats.get(name)
        return None if seat is None else self._host.expires(seat)

    def weight_bytes(self, name: str) -> int:
        """Bytes of a model's weights, all nodes together."""
        return self._seats[name].card.weight_bytes


def _resting(drained: Sequence[str]) -> root_pb2.ClusterStatus:
    """The status of a root without a model in memory: ready, because a request loads one."""
    status = root_pb2.ClusterStatus(
        state=root_pb2.CLUSTER_STATE_SERVING,
        reason="no model is in memory; the next request loads one",
    )
    for address in drained:
        status.peers.add(
            address=address,
            state=root_pb2.PEER_STATE_DRAINED,
            reason="taken out on purpose, as long as the root runs",
        )
    return status


def _drained(status: root_pb2.ClusterStatus) -> list[str]:
    return [peer.address for peer in status.peers if peer.state == root_pb2.PEER_STATE_DRAINED]
