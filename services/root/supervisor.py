"""The I/O around membership.py: asks workers what they are, forms the cluster, pauses the engine.

All decisions are the membership's. Events come from the sources' threads, from those that ask, and
from the cluster; they are looked at in one thread: the caller's in `form_first`, one of its own
from `start` on.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.cluster import Cluster
from hearth.root.cluster.links import WorkerLink
from hearth.root.discovery.sources import Source, sources
from hearth.root.engine.engine import Engine
from hearth.root.membership.candidates import Fit, Form, Member, Misfit, Rules, Serve, State
from hearth.root.membership.membership import GONE, LEAVING, Membership
from hearth.root.planning.blueprint import Blueprint
from hearth.root.planning.facts import NodeFacts
from hearth.root.settings import Joining
from hearth.v1 import root_pb2

log = logging.getLogger(__name__)

# Workers asked at once.
_ASKERS = 8
# At a start: what may pass without anyone changing a setting.
_PASSING = GONE | {
    Reason.WORKER_BUSY,
    Reason.STREAM_IN_USE,
    Reason.SHUTTING_DOWN,
    Reason.CLUSTER_NOT_READY,
}
# How long a step that runs may take to end before the model is divided anew.
_STEP_SECONDS = 30.0

Event = Callable[[float], object]


class Supervisor:
    """Keeps a cluster formed, with the workers that there are, from `form_first` to `stop`."""

    def __init__(self, cluster: Cluster, engine: Engine, joining: Joining) -> None:
        """Raises HearthError BAD_SETTING."""
        self._cluster = cluster
        self._engine = engine
        self._joining = joining
        self._static = cluster.settings.workers
        self._membership = Membership(
            _rules(joining, self._static, cluster.blueprint.most_workers), _fit(cluster.blueprint)
        )
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._sources: list[Source] = sources(joining, self._found)
        self._askers = ThreadPoolExecutor(_ASKERS, "describe")
        self._asking: set[WorkerLink] = set()
        self._stopping = threading.Event()
        self._drains: list[tuple[str, Future[root_pb2.ClusterStatus]]] = []
        # Why the cluster was lost, and what has been told of it since.
        self._cause: HearthError | None = None
        self._said = ""
        # What each worker was last refused for.
        self._refusals: dict[str, HearthError] = {}
        self._told: dict[str, tuple[State, str]] = {}
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        cluster.listen(self)

    def form_first(self) -> None:
        """Forms the cluster when enough workers are there; the engine runs after.

        Raises HearthError for what waiting cannot change, or when `join_seconds` have passed.
        """
        for source in self._sources:
            source.start()
        seconds = self._joining.join_seconds
        deadline = time.monotonic() + seconds
        while True:
            until = min(self._look(), deadline)
            if self._membership.serving is not None:
                return
            self._raise_what_cannot_pass()
            if time.monotonic() >= deadline:
                raise self._not_joined(seconds)
            self._await_event(until)

    def start(self) -> None:
        """Goes on in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Ends a forming that is under way; what serves goes on."""
        self._stopping.set()
        self._cluster.interrupt()
        for source in self._sources:
            source.stop()
        self._post(lambda now: None)
        if self._thread.is_alive():
            self._thread.join()
        for link in list(self._asking):
            link.close()
        self._askers.shutdown(cancel_futures=True)
        for _, future in self._drains:
            future.set_exception(HearthError(Reason.SHUTTING_DOWN, "the root is shutting down"))

    def drain(self, worker: str, undo: bool = False) -> Future[root_pb2.ClusterStatus]:
        """Takes a worker out on purpose, or lets it in again; done when the cluster serves so.

        The future raises HearthError: no such worker, or the rest have no room for the model.
        """
        future: Future[root_pb2.ClusterStatus] = Future()
        future.set_running_or_notify_cancel()  # its reader may leave; it is answered all the same

        def event(now: float) -> None:
            try:
                self._membership.drain(worker, undo, now)
            except HearthError as error:
                future.set_exception(error)
            else:
                log.info("worker %s is %s", worker, "let in again" if undo else "taken out")
                self._drains.append((worker, future))

        self._post(event)
        return future

    # Events, from any thread.

    def _post(self, event: Event) -> None:
        self._events.put(event)

    def _found(self, source: str, addresses: list[str]) -> None:
        self._post(lambda now: self._membership.found(source, addresses, now))

    def cluster_lost(self, error: HearthError) -> None:
        """Requests wait until the cluster is back."""
        self._engine.suspend(error)

        def event(now: float) -> None:
            if self._cluster.lost is None:
                return  # it has been formed again since
            self._cause, self._said = error, ""
            on_purpose = error.reason == Reason.SHUTTING_DOWN
            worker, peer = (error.metadata.get(key, "") for key in ("worker", "peer"))
            self._membership.lost(worker, error.message, on_purpose, now, peer=peer)
            # So that those who are left tell what memory is free.
            self._cluster.dissolve()

        self._post(event)

    def worker_leaving(self, address: str) -> None:
        self._post(lambda now: self._membership.leaving(address, LEAVING, now))

    def _ask(self, address: str) -> None:
        """One question, in a thread of the pool; always answered."""
        membership, answer = self._membership, None
        failure: HearthError | None = None
        link: WorkerLink | None = None
        try:
            link = WorkerLink(address, self._cluster.settings.security)
            self._asking.add(link)
            answer = link.describe(self._cluster.root_id)
        except HearthError as error:
            failure = error
        except Exception as error:  # the channel was closed under it
            failure = HearthError(Reason.WORKER_UNREACHABLE, f"{type(error).__name__}: {error}")
        finally:
            if link is not None:
                self._asking.discard(link)
                link.close()

        def event(now: float) -> None:
            if answer is None:
                assert failure is not None
                self._refusals[address] = failure
                tell: Callable[[str, str, float], None] = membership.refused
                if failure.reason == Reason.WORKER_UNREACHABLE:
                    tell = membership.unreachable
                elif failure.reason == Reason.SHUTTING_DOWN:
                    tell = membership.leaving
                tell(address, failure.message, now)
            elif answer.held_by and not answer.held_by_caller:
                problem = f"busy: root {answer.held_by!r} holds it"
                self._refusals[address] = HearthError(Reason.WORKER_BUSY, problem)
                membership.refused(address, problem, now)
            else:
                self._refusals.pop(address, None)
                room = answer.node.memory_available_bytes
                membership.described(address, answer.node.name, answer.instance, room, now)

        self._post(event)

    # In the one thread.

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._await_event(self._look())
            except Exception:
                # Whatever it was, a root that gives up is of no use to anyone.
                log.exception("supervisor: unexpected error")
                self._stopping.wait(1.0)

    def _await_event(self, until: float) -> None:
        with suppress(queue.Empty):
            event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            while True:
                event(time.monotonic())
                event = self._events.get_nowait()

    def _look(self) -> float:
        """Asks, decides and acts; when to look again."""
        membership = self._membership
        for address in membership.due(time.monotonic()):
            self._askers.submit(self._ask, address)
        decision = membership.decide(time.monotonic(), self._engine.busy)
        waiting = None
        if isinstance(decision, Form) and not self._stopping.is_set():
            self._form(decision)
            until = time.monotonic()
        elif isinstance(decision, Serve):
            self._answer_drains()
            until = decision.until
        else:
            waiting = decision.why
            until = time.monotonic() + 1.0 if isinstance(decision, Form) else decision.until
            self._tell_waiting(decision.why)
        self._tell_candidates()
        self._cluster.show(membership.candidates, waiting)
        return until

    def _form(self, decision: Form) -> None:
        names = ", ".join(decision.workers) or "no workers"
        log.info("forming the cluster with %s: %s", names, decision.why)
        if self._cluster.lost is None:
            pause = HearthError(
                Reason.CLUSTER_NOT_READY, f"the model is being divided anew: {decision.why}"
            )
            self._engine.suspend(pause).wait(_STEP_SECONDS)
            self._cause = pause
        try:
            limits = self._cluster.form(decision.workers)
        except HearthError as error:
            address, peer = (error.metadata.get(key, "") for key in ("worker", "peer"))
            self._refusals[address] = error
            if not self._stopping.is_set():
                log.warning("the cluster was not formed: %s", error.message)
            now = time.monotonic()
            self._membership.failed(address, error.reason, error.message, now, peer=peer)
        except Exception as error:
            log.exception("the cluster was not formed")
            problem = f"{type(error).__name__}: {error}"
            self._refusals[""] = HearthError(Reason.INTERNAL, problem)
            self._membership.failed("", Reason.INTERNAL, problem, time.monotonic())
        else:
            self._refusals.clear()
            self._cause, self._said = None, ""
            self._membership.formed(decision.workers, time.monotonic())
            self._engine.resume(limits)
            log.info("the cluster serves, epoch %d", self._cluster.status().epoch)

    def _answer_drains(self) -> None:
        for _, future in self._drains:
            future.set_result(self._cluster.status())
        self._drains.clear()

    def _tell_waiting(self, why: str) -> None:
        if why == self._said:
            return
        self._said = why
        log.warning("the cluster does not serve: %s", why)
        cause = self._cause
        if cause is not None:
            message = f"{cause.message} (now: {why})"
            self._engine.suspend(HearthError(cause.reason, message, cause.metadata, cause.code))

    def _tell_candidates(self) -> None:
        told = {c.address: (c.shown, c.reason) for c in self._membership.candidates}
        for candidate in self._membership.candidates:
            news = told[candidate.address]
            if self._told.get(candidate.address) != news:
                state = news[0].name.lower()
                log.info("worker %s: %s%s", candidate.title, state, f": {news[1]}" * bool(news[1]))
        for address in self._told.keys() - told.keys():
            log.info("worker %s: no source lists it any more", address)
        self._told = told

    def _raise_what_cannot_pass(self) -> None:
        """At a start a listed worker that can never be used is an error of the command line."""
        for address, error in self._refusals.items():
            if error.reason not in _PASSING and (not address or address in self._static):
                raise error

    def _not_joined(self, seconds: float) -> HearthError:
        listed = [self._refusals[a] for a in self._static if a in self._refusals]
        error = next(iter([*listed, *self._refusals.values()]), None)
        if error is None:
            problem = f"{self._said or 'no workers are there'}"
            error = HearthError(Reason.WORKER_UNREACHABLE, problem)
        message = f"{error.message} (waited {seconds:g} s: see --join-seconds)"
        return HearthError(error.reason, message, error.metadata, error.code)


def _fit(blueprint: Blueprint) -> Fit:
    """The blueprint's answer as the membership asks for it."""

    def fit(workers: tuple[Member, ...]) -> Misfit | None:
        found = blueprint.misfit([NodeFacts(w.title, w.room, w.address) for w in workers])
        if found is None:
            return None
        rank, problem = found
        return Misfit(workers[rank - 1].address if rank else "", problem)

    return fit


def _rules(joining: Joining, static: tuple[str, ...], most: int) -> Rules:
    """Raises HearthError BAD_SETTING for more workers than the model can be divided over."""
    discovering = bool(joining.dns) or joining.mdns
    needed = joining.min_workers
    if needed is None:
        needed = len(static) or int(discovering)
    if needed < 0:
        raise HearthError(Reason.BAD_SETTING, f"--min-workers {needed} is less than 0")
    if needed > most:
        problem = (
            f"--min-workers {needed} is more than the {most} workers that the model's KV heads "
            "allow beside the root"
        )
        raise HearthError(Reason.BAD_SETTING, problem)
    return Rules(most, needed, static, joining.wait_seconds)
