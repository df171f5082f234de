"""The I/O around membership.py: takes its events in, and acts on its decisions.

    sources (discovery), answers (cluster/asking.py), losses (cluster), drains (api)  ->  queue
    queue -> Membership.handle; Membership.due -> Asker; Membership.decide -> Cluster.form, Engine

All decisions are the membership's. Events may come from any thread. One thread takes them and acts:
the caller's in `form_first`, one of its own from `start` on. Times are seconds since the supervisor
was made.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.asking import Asker, without_name
from hearth.root.cluster.cluster import Cluster
from hearth.root.discovery.sources import Source, sources
from hearth.root.draining import Answer, Drains, fail
from hearth.root.engine.engine import Engine
from hearth.root.membership import events
from hearth.root.membership.deciding import LEAVING
from hearth.root.membership.decisions import Form, Serve
from hearth.root.membership.membership import GONE, Membership, MembershipError
from hearth.root.membership.peers import PeerState, titles
from hearth.root.rules import fit_of, rules_of
from hearth.root.settings import Joining
from hearth.root.status.peer_log import PeerLog
from hearth.root.status.story_file import StoryFile

log = logging.getLogger(__name__)

# At a start: reasons that may pass without a change of any setting.
_PASSING = GONE | {
    Reason.WORKER_BUSY,
    Reason.STREAM_IN_USE,
    Reason.SHUTTING_DOWN,
    Reason.CLUSTER_NOT_READY,
}
# At a start: how long workers may take to answer before the log warns of it.
_QUIET_SECONDS = 3.0
# At a start: how often the log says how long the root still waits.
_TIME_LEFT_SECONDS = 10.0
# How long a running step may take to end before the model is divided again.
_STEP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Posted:
    """An event on its way to the membership, with what the membership does not need."""

    event: events.Event
    # Of an answer: why the worker cannot be used.
    error: HearthError | None = None
    # Of a Drain or Undrain: done when the worker is out, or in.
    done: Answer | None = None


class Supervisor:
    """Keeps a cluster formed, with the workers that there are, from `form_first` to `stop`."""

    def __init__(
        self,
        cluster: Cluster,
        engine: Engine,
        joining: Joining,
        asker: Callable[..., Asker] = Asker,
    ) -> None:
        """Raises HearthError BAD_SETTING."""
        self._cluster = cluster
        self._engine = engine
        self._joining = joining
        self._static = cluster.settings.workers
        self._began = time.monotonic()
        rules = rules_of(joining, self._static, cluster.blueprint.most_workers)
        self._needed = rules.needed
        self._story = StoryFile(joining.story) if joining.story else None
        record = self._story.write if self._story is not None else None
        self._membership = Membership(rules, fit_of(cluster.blueprint), record)
        self._queue: queue.SimpleQueue[_Posted | None] = queue.SimpleQueue()
        self._sources: list[Source] = sources(joining, self._found)
        self._asker = asker(cluster.root_id, cluster.settings.security, self._answered)
        self._stopping = threading.Event()
        # Nothing is drained once `_stopping` is set.
        self._draining = threading.Lock()
        self._drains = Drains(self._membership, cluster.status)
        # Why the cluster stopped serving; the reasons for waiting that were shown and logged last.
        self._cause: HearthError | None = None
        self._shown_why = self._logged_why = ""
        # Workers are being asked for the first time until then; 0 once the cluster was formed.
        self._quiet_until = 0.0
        # When the log says next how long the root still waits; a start without a wait says nothing.
        self._time_left_at = _QUIET_SECONDS
        # Why each worker could not be used last.
        self._refusals: dict[str, HearthError] = {}
        self._peer_log = PeerLog()
        self._broken = ""
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        cluster.listen(self)

    def form_first(self) -> None:
        """Forms the cluster when enough workers are there; the engine runs after.

        Raises HearthError for what waiting cannot change, or when `join_seconds` have passed.
        """
        for source in self._sources:
            source.start()
        seconds = self._joining.join_seconds
        deadline = self._now() + seconds
        self._quiet_until = self._now() + _QUIET_SECONDS
        while True:
            until = min(self._look(), deadline)
            if self._membership.serving is not None:
                return
            if self._stopping.is_set():
                raise _shutting_down()
            self._raise_what_cannot_pass()
            if self._now() >= deadline:
                raise self._not_joined(seconds)
            self._log_time_left(deadline)
            self._await_event(until)

    def start(self) -> None:
        """Goes on in a thread of its own."""
        self._thread.start()

    def interrupt(self) -> None:
        """Ends `form_first` in another thread, with SHUTTING_DOWN; `stop` follows."""
        with self._draining:
            self._stopping.set()
        self._cluster.interrupt()
        self._queue.put(None)

    def stop(self) -> None:
        """Ends a forming that is under way; a cluster that serves goes on.

        Drains that are not done fail with SHUTTING_DOWN, and so do later ones.
        """
        with self._draining:
            self._stopping.set()
        self._cluster.interrupt()
        for source in self._sources:
            source.stop()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._asker.stop()
        self._drains.end(_shutting_down())
        with suppress(queue.Empty):
            while True:
                posted = self._queue.get_nowait()
                if posted is not None and posted.done is not None:
                    fail(posted.done, _shutting_down())
        if self._story is not None:
            self._story.close()

    def drain(self, worker: str, undo: bool = False) -> Answer:
        """Take a worker out on purpose; done when the cluster serves without it.

        With `undo`, let it in again; done when it is in, or ready where it is not needed now. A
        caller with a deadline cancels the future then; without one the wait ends after an hour.

        The future raises HearthError. INVALID_ARGUMENT: no such worker. OUT_OF_MEMORY: the rest, or
        the worker that comes back, have no room. CANCELLED: the opposite call came meanwhile. Also
        DEADLINE, SHUTTING_DOWN, and the worker's own reason where it refuses or is unreachable.
        """
        done: Answer = Future()
        event = (
            events.Undrain(events.PENDING, worker) if undo else events.Drain(events.PENDING, worker)
        )
        with self._draining:
            if not self._stopping.is_set():
                self._queue.put(_Posted(event, done=done))
                return done
        fail(done, _shutting_down())
        return done

    # Events, from any thread. Their time is set when they are taken: the membership sees times
    # that never go back.

    def cluster_lost(self, error: HearthError) -> None:
        """The cluster's: it no longer serves. Requests wait until it does again."""
        self._engine.suspend(error)
        worker = error.metadata.get("worker", "")
        lost = events.Lost(
            events.PENDING,
            worker,
            without_name(error.message, worker),
            on_purpose=error.reason == Reason.SHUTTING_DOWN,
            apart_from=_apart_from(error),
            unfit=error.reason == Reason.WORKER_UNFIT,
        )
        self._queue.put(_Posted(lost, error))

    def worker_leaving(self, address: str) -> None:
        """The cluster's: a worker is about to stop."""
        self._queue.put(_Posted(events.Leaving(events.PENDING, address, LEAVING)))

    def worker_cleared(self, address: str) -> None:
        """The cluster's: a worker is not at fault."""
        self._queue.put(_Posted(events.Cleared(events.PENDING, address)))

    def cluster_worked(self, workers: tuple[str, ...]) -> None:
        """The cluster's: its workers have shown that they are sound."""
        self._queue.put(_Posted(events.Worked(events.PENDING, workers)))

    def cluster_uneven(self, workers: tuple[str, ...], shares: tuple[float, ...]) -> None:
        """The cluster's: other shares of the root and these would be faster."""
        self._queue.put(_Posted(events.Uneven(events.PENDING, workers, shares)))

    def _found(self, source: str, addresses: list[str]) -> None:
        self._queue.put(_Posted(events.Found(events.PENDING, source, tuple(addresses))))

    def _answered(self, event: events.Event, error: HearthError | None) -> None:
        if isinstance(event, events.Described | events.Refused | events.Unreachable):
            for source in self._sources:
                source.tried(event.address, isinstance(event, events.Described))
        self._queue.put(_Posted(event, error))

    # In the one thread.

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._await_event(self._look())
            except Exception:
                # Keep supervising: a root that stops here can never recover.
                log.exception("supervisor: unexpected error")
                self._stopping.wait(1.0)

    def _await_event(self, until: float) -> None:
        """Takes all events that are there; waits for one until then at most."""
        with suppress(queue.Empty):
            posted = self._queue.get(timeout=max(0.0, until - self._now()))
            while True:
                if posted is not None:
                    self._take(posted)
                posted = self._queue.get_nowait()

    def _take(self, posted: _Posted) -> None:
        event = replace(posted.event, at=self._now())
        match event:
            case events.Lost():
                self._take_loss(event, posted.error)
            case events.Drain() | events.Undrain():
                self._take_drain(event, posted.done)
            case events.Described():
                self._refusals.pop(event.address, None)
                if self._membership.started_again(event):
                    self._cluster.blueprint.forget(event.address)
                self._membership.handle(event)
            case events.Refused() | events.Unreachable() | events.Leaving():
                if posted.error is not None:
                    self._refusals[event.address] = posted.error
                    self._drains.refused(event.address, posted.error)
                self._membership.handle(event)
            case events.Uneven():
                if event.workers == self._membership.serving:
                    self._cluster.blueprint.take_shares(event.workers, event.shares)
                    self._membership.handle(event)
            case _:
                self._membership.handle(event)

    def _take_loss(self, event: events.Lost, error: HearthError | None) -> None:
        if self._cluster.lost is None:
            return  # it has been formed again since
        self._cause, self._shown_why, self._logged_why = error, "", ""
        self._membership.handle(event)
        # So that the workers that are left report the memory that is free.
        self._cluster.dissolve()

    def _take_drain(self, event: events.Drain | events.Undrain, done: Answer | None) -> None:
        undo = isinstance(event, events.Undrain)
        try:
            self._membership.handle(event)
            if undo:  # it may be as slow as it was before, or not
                self._cluster.blueprint.forget(self._membership.called(event.worker).address)
            if done is not None:
                self._drains.add(event.worker, undo, done, self._now())
        except Exception as error:
            if done is not None:
                fail(done, error)
            if not isinstance(error, HearthError):
                raise
        else:
            log.info("worker %s is %s", event.worker, "let in again" if undo else "taken out")

    def _look(self) -> float:
        """Asks, decides and acts; when to look again."""
        membership = self._membership
        for address in membership.due(self._now()):
            self._asker.ask(address)
        decision = membership.decide(self._now(), self._engine.busy)
        waiting = None
        if isinstance(decision, Form) and not self._stopping.is_set():
            self._form(decision)
            until = self._now()
        elif isinstance(decision, Serve):
            self._check()
            until = decision.until
        else:
            waiting = decision.why
            until = self._now() + 1.0 if isinstance(decision, Form) else decision.until
            self._show_waiting(decision.why)
        self._drains.look(self._now(), serves=isinstance(decision, Serve))
        known = {peer.address for peer in membership.peers}
        for address in self._refusals.keys() - known - {""}:
            del self._refusals[address]
        self._peer_log.show(membership.peers)
        self._cluster.show(membership.peers, waiting)
        return until

    def _form(self, decision: Form) -> None:
        if decision.workers:
            log.info("forming the cluster with %s: %s", ", ".join(decision.workers), decision.why)
        else:
            log.info("the model runs on this machine alone")
        if self._cluster.lost is not None and self._cause is None:
            problem = "the root is loading the model (`hearth cluster` shows how far it is)"
            self._engine.suspend(HearthError(Reason.CLUSTER_NOT_READY, problem), refuse=True)
        elif self._cluster.lost is None:
            pause = HearthError(
                Reason.CLUSTER_NOT_READY, f"the model is being divided again: {decision.why}"
            )
            self._engine.suspend(pause).wait(_STEP_SECONDS)
            self._cause = pause
        try:
            limits = self._cluster.form(decision.workers)
        except HearthError as error:
            if not self._stopping.is_set():
                log.warning("the cluster was not formed: %s%s", error.message, self._see_story())
            self._form_failed(error)
        except Exception as error:
            log.exception("the cluster was not formed%s", self._see_story())
            self._form_failed(HearthError(Reason.INTERNAL, f"{type(error).__name__}: {error}"))
        else:
            self._refusals.clear()
            self._cause, self._shown_why, self._logged_why = None, "", ""
            self._quiet_until = 0.0
            self._membership.handle(events.Formed(self._now(), self._cluster.workers))
            kept = self._cluster.pages_kept
            self._engine.resume(limits, kept)
            pages = ", with the KV pages that it had" if kept else ""
            log.info("the cluster serves, epoch %d%s", self._cluster.status().epoch, pages)

    def _form_failed(self, error: HearthError) -> None:
        address = error.metadata.get("worker", "")
        error = error.copy()  # kept, without the frames of the attempt
        self._refusals[address] = error
        self._drains.refused(address, error)
        self._membership.handle(
            events.FormFailed(
                self._now(),
                address,
                error.reason,
                error.message,
                apart_from=_apart_from(error),
                unfit=error.reason == Reason.WORKER_UNFIT,
            )
        )

    def _check(self) -> None:
        """Logs a broken invariant of the membership once, with the story, and goes on."""
        try:
            self._membership.check()
        except MembershipError as error:
            if error.problem != self._broken:
                self._broken = error.problem
                log.error("%s%s", error, self._see_story())

    def _see_story(self) -> str:
        return f" (its story: {self._story.path})" if self._story is not None else ""

    def _show_waiting(self, why: str) -> None:
        # The reason of each worker is in the log of its own state: peer_log.py.
        if why != self._logged_why and (self._refusals or self._now() >= self._quiet_until):
            self._logged_why = why
            log.warning("the cluster is not ready: %s", why)
        if why == self._shown_why:
            return
        self._shown_why = why
        cause = self._cause
        if cause is None:
            # Since the start nothing was formed: requests are refused, with the reason.
            problem = HearthError(Reason.CLUSTER_NOT_READY, self._awaited())
            self._engine.suspend(problem, refuse=True)
        else:
            message = f"{cause.message} (now: {why})"
            self._engine.suspend(HearthError(cause.reason, message, cause.metadata, cause.code))

    def _log_time_left(self, deadline: float) -> None:
        if self._now() >= self._time_left_at:
            self._time_left_at = self._now() + _TIME_LEFT_SECONDS
            left = deadline - self._now()
            log.info("%s (%.0f s left: --join-seconds)", self._awaited(), left)

    def _awaited(self) -> str:
        """Names of the workers that the start waits for; else the reason of the wait."""
        states = (PeerState.SEEN, PeerState.UNREACHABLE)
        absent = [peer for peer in self._membership.peers if peer.state in states]
        if not absent:
            return self._shown_why or "no workers are there"
        return f"waiting for {titles(absent)}"

    def _raise_what_cannot_pass(self) -> None:
        """At a start a listed worker that can never be used is an error of the command line.

        So is a model without room where no worker can come. It is not an error where fewer workers
        than the list has are enough.
        """
        if not self._static and not self._sources and self._shown_why:
            alone = not self._joining.min_workers
            reason = Reason.OUT_OF_MEMORY if alone else Reason.WORKER_UNREACHABLE
            raise HearthError(reason, f"{self._shown_why}; no worker is listed (--workers)")
        if self._needed < len(self._static) and "" not in self._refusals:
            return
        for address, error in self._refusals.items():
            if error.reason not in _PASSING and (not address or address in self._static):
                raise error

    def _not_joined(self, seconds: float) -> HearthError:
        listed = [self._refusals[a] for a in self._static if a in self._refusals]
        error = next(iter([*listed, *self._refusals.values()]), None)
        if error is None:
            problem = self._shown_why or "no workers are there"
            error = HearthError(Reason.WORKER_UNREACHABLE, problem)
        elif len(listed) > 1:
            others = ", ".join(address for address in self._static if address in self._refusals)
            stop = "" if error.message.endswith((".", "?")) else "."
            message = f"{error.message}{stop} All absent workers: {others}"
            error = HearthError(error.reason, message, error.metadata, error.code)
        message = f"{error.message} (waited {seconds:g} s: see --join-seconds)"
        return HearthError(error.reason, message, error.metadata, error.code)


def _apart_from(error: HearthError) -> str:
    """The address of the worker that the error's worker does not reach; "" for none.

    Other errors use `peer` for whatever did not answer the root.
    """
    return error.metadata.get("peer", "") if error.reason == Reason.PEER_LOST else ""


def _shutting_down() -> HearthError:
    return HearthError(Reason.SHUTTING_DOWN, "the root is shutting down")
