"""A model over the root and its workers: forms the cluster, and runs steps while it serves.

`form` makes a Formation (forming.py does the work): every worker dialled, all shards loaded, the
Forward streams and the lane open. `submit` is one step on all nodes. When a worker is lost, the
step that is running fails with an error that names it, and nothing runs until `form` is called
again.

A root that serves for long calls `form` through its Supervisor, which also forms again after a
loss. A command that runs one request calls `form` itself; a lost worker ends the command.

Locks, in the order in which a thread may take them:
1. `Cluster._stepping`: held for the length of a step; with several stages, of the root's part.
2. `State`'s, `Reports`', `Board`'s, `Pipeline`'s and `WorkerLink`'s own locks: held inside one
   method each, and `Board`'s for a whole `with board.change()` block. No thread holds two of them:
   such a block takes no lock and calls nothing that waits (`Cluster.lost` takes none).
Subscribers and listeners are called without the second kind. The thread that runs steps calls them
too, while it holds `_stepping`: they must not wait for a step.
"""

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from hearth import _native
from hearth.common.candidates import WHOLE_ROWS, Candidates
from hearth.common.errors import Code, HearthError, Reason
from hearth.common.metrics import RootMetrics, phase_of
from hearth.converter import Model
from hearth.root.cluster import blame, state
from hearth.root.cluster.archive import Archive
from hearth.root.cluster.formation import Formation
from hearth.root.cluster.forming import KEEP_SECONDS, Forming, LoadListener
from hearth.root.cluster.limits import limits_for
from hearth.root.cluster.links import WorkerLink
from hearth.root.cluster.pipeline import Pipeline
from hearth.root.cluster.reports import refine
from hearth.root.cluster.stepping import StepRun
from hearth.root.cluster.suspicion import Suspicion
from hearth.root.membership.peers import Peer
from hearth.root.planning.blueprint import draw
from hearth.root.planning.drift import Drift
from hearth.root.planning.plan import Plan
from hearth.root.scheduling.batch import Batch, Limits, StepOutput
from hearth.root.settings import ClusterSettings
from hearth.root.status import describe
from hearth.root.status.board import Board
from hearth.v1 import root_pb2, worker_pb2
from hearth.worker.shard import NodeShard

log = logging.getLogger(__name__)

T = TypeVar("T")

_WATCHDOG_GRACE = 2.0
# A formation has worked once its steps with logits took so long together: some request went on.
_WORKED_SECONDS = 1.0
# Between two changes of the shares: a node that is busy for a minute moves no weights to and fro.
_BALANCE_SECONDS = 600.0
# Steps of one row before this position are compared with the prediction, which is of such.
_COMPARED_POSITIONS = 1024


class Listener(Protocol):
    """Called when the cluster changes by itself, in any thread; must not wait for a step."""

    def cluster_lost(self, error: HearthError) -> None:
        """The cluster no longer serves, because of `error`."""

    def worker_leaving(self, address: str) -> None:
        """The worker at `address` is about to stop. Called in the thread that runs steps."""

    def worker_cleared(self, address: str) -> None:
        """The worker at `address` was left out for what the model does. Called as the one above."""

    def cluster_worked(self, workers: tuple[str, ...]) -> None:
        """Steps have shown that these, all of the cluster, are sound. Called as the one above."""

    def cluster_uneven(self, workers: tuple[str, ...], shares: tuple[float, ...]) -> None:
        """Such shares of the root and these would be faster. Called as the one above."""


class Cluster:
    """One model over the root and its workers.

    `form` and `submit` may be called by different threads: `form` first ends a step that is
    running.
    """

    def __init__(
        self,
        model: Model,
        settings: ClusterSettings,
        *,
        metrics: RootMetrics | None = None,
        on_load: LoadListener = lambda address, event: None,
    ) -> None:
        self.settings = settings
        self._metrics = metrics or RootMetrics()
        self._on_load = on_load
        self._listeners: tuple[Listener, ...] = ()
        # Before anything is dialled: what cannot be cut is an error of the command line.
        self.blueprint = draw(model, settings)
        # Of the workers that it is, or was last tried to be, formed with.
        self.plan: Plan = self.blueprint.plan(settings.workers)
        self._root_id = secrets.token_hex(16)
        self._epoch = 0
        # The last one in which a step, or a fetch of pages, began.
        self._pages_epoch = 0
        self._pages_kept = False
        self._board = Board()
        self._shard: NodeShard | None = None
        self._state = state.State()
        self._stepping = threading.Lock()
        self._interrupted = threading.Event()
        self._closed = threading.Event()
        self._deadline: float | None = None
        # When the running, or the last, step began; by time.perf_counter(), when one ended last.
        self._step_began = 0.0
        self._busy_until = 0.0
        self._watchdog: threading.Thread | None = None
        self._suspicion = Suspicion()
        # KV pages on disk (--kv-cache disk).
        self.archive = (
            Archive(settings.page_dir, settings.page_limit, self._metrics, self._between)
            if settings.page_dir is not None and settings.prefix_cache
            else None
        )
        # The speed of the plan in use beside the expected one.
        self._drift: Drift | None = None
        # The one whose shares were offered; and when some were taken last, time.monotonic().
        self._offered: Drift | None = None
        self._balanced_at = -math.inf
        with self._board.change() as status:
            status.CopyFrom(self._forming_status(settings.workers))

    @property
    def lost(self) -> HearthError | None:
        """The reason that nothing runs until `form` is called; None while the cluster serves."""
        return self._state.lost

    @property
    def pages_kept(self) -> bool:
        """True if the KV pages of all nodes hold what they held before the last `form`."""
        return self._pages_kept

    def listen(self, listener: Listener) -> None:
        """Calls `listener` from now on, for as long as the cluster lives."""
        self._listeners += (listener,)

    def status(self) -> root_pb2.ClusterStatus:
        """See GetCluster."""
        status = self._board.status()
        if self._drift is not None and status.HasField("prediction"):
            status.prediction.measured_decode_tokens_per_second = self._drift.decode
        return status

    def subscribe(
        self, callback: Callable[[root_pb2.ClusterStatus], object]
    ) -> Callable[[], object]:
        """See WatchCluster; the function returned ends it."""
        return self._board.subscribe(callback)

    def expected_limits(self) -> Limits:
        """The limits that `form` returns when no node is short of memory."""
        room = self.blueprint.expected_room()
        return limits_for(self.blueprint, room, len(self.plan.stages))

    @property
    def workers(self) -> tuple[str, ...]:
        """Those that the cluster was formed with, in rank order: `form` may have left some out."""
        phase = self._state.phase
        links = phase.formation.links if isinstance(phase, state.Serving | state.Lost) else ()
        return tuple(link.address for link in links)

    @property
    def root_id(self) -> str:
        """Of this root's leases."""
        return self._root_id

    def show(self, known: Sequence[Peer], why: str | None = None) -> None:
        """Puts all known workers on the board; why: the reason that the cluster is not ready."""
        peers = describe.peers(known)
        status = self._board.status()
        news = describe.explain(status, known, why) if why is not None else False
        if news or list(status.peers) != peers:
            with self._board.change() as status:
                del status.peers[:]
                status.peers.extend(peers)
                if why is not None and self.lost is not None:
                    describe.explain(status, known, why)

    def form(self, workers: Sequence[str] | None = None) -> Limits:
        """Dials, loads and opens; what the scheduler may use then. See `pages_kept` too.

        workers: addresses in rank order; those of the settings where not given. Workers that slow
        requests may be left out (Blueprint.left_out). Raises HearthError naming the worker that is
        absent, busy, of another version, short of memory or lost on the way; nothing runs then, and
        `form` may be called again.
        """
        self.dissolve()
        workers = tuple(self.settings.workers if workers is None else workers)
        self.plan = self.blueprint.plan(workers)
        self._epoch += 1
        with self._board.change() as status:
            known = list(status.peers)
            status.CopyFrom(self._forming_status(workers))
            status.peers.extend(known)
        forming = Forming(
            self.blueprint,
            workers,
            self._lease(),
            self._shard,
            self._board,
            self._metrics,
            self._on_load,
            self._stream_ended,
            self.archive,
        )
        self._state.begin(forming)
        if self._interrupted.is_set():
            forming.interrupt()
        try:
            formation, limits = forming.run()
        except BaseException as error:
            self._state.failed(error.copy() if isinstance(error, HearthError) else None)
            with self._board.change() as status:
                describe.degraded(status, error)
            raise
        finally:
            self._shard = forming.shard
            self.plan = forming.plan
        self._pages_kept = forming.own_kept and all(
            epoch == self._pages_epoch for epoch in forming.pages_epochs
        )
        self._drift = Drift(forming.prediction) if forming.prediction is not None else None
        if formation.stages > 1:
            formation.pipeline = Pipeline(
                formation.legs(),
                partial(self._ended, formation),
                partial(self._failed, formation),
            )
        if not self._state.serve(formation):
            formation.release(self._lease())
            raise HearthError(Reason.SHUTTING_DOWN, "the root is shutting down")
        if self.archive is not None:
            self.archive.use(formation.pages)
        self._metrics.page_bytes(self._page_bytes())
        if self._watchdog is None and formation.links:
            self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._watchdog.start()
        with self._board.change() as status:
            # Unless a worker was lost since: the board shows that already, and must go on to.
            if self.lost is None:
                describe.serving(status)
        self._check_broken(forming, formation)
        return limits

    def _page_bytes(self) -> int:
        """Bytes of one KV page on all nodes together."""
        spec, settings = self.blueprint.model.spec, self.settings
        sizes = (
            node.kv_page_bytes(spec, settings.kv_type, settings.page_size)
            for node in self.plan.nodes
        )
        return sum(sizes)

    def _forming_status(self, workers: Sequence[str]) -> root_pb2.ClusterStatus:
        name = self.blueprint.model.spec.name
        context_size = self.blueprint.context
        return describe.forming(self._epoch, self.settings, self.plan, workers, name, context_size)

    @property
    def depth(self) -> int:
        """Batches worth keeping in flight: as many as the plan has stages."""
        return len(self.plan.stages)

    def submit(
        self,
        batch: Batch,
        candidates: Candidates = WHOLE_ROWS,
        hidden: bool = False,
    ) -> Future[StepOutput]:
        """One step on all nodes. The Future raises HearthError when a worker is lost: `form` again.

        candidates: what is enough of each row. hidden: return the final hidden states of all rows
        too.

        The root's own stage is computed in the calling thread: handing it to another and back would
        cost tens of microseconds a token. With one stage that is the whole step.
        """
        step: Future[StepOutput] = Future()
        try:
            with self._stepping:
                phase = self._state.phase
                if not isinstance(phase, state.Serving):
                    raise phase.error.copy()
                formation = phase.formation
                self._pages_epoch = self._epoch
                if formation.pipeline is not None:
                    return self._begin(formation, batch, candidates, hidden)
                output = self._run(formation, batch, candidates, hidden)
            self._completed(formation, batch, output)
            step.set_result(output)
        except Exception as error:
            step.set_exception(error)
        return step

    def _run(
        self,
        formation: Formation,
        batch: Batch,
        candidates: Candidates,
        hidden: bool,
    ) -> StepOutput:
        """A step of a plan of one stage."""
        self._step_began = time.monotonic()
        if formation.links:
            self._deadline = self._step_began + self._step_seconds
        try:
            output = formation.step(batch, candidates, hidden)
        except Exception as error:
            raise self._failed(formation, error) from None
        finally:
            self._deadline = None
        self._judge(formation, batch, output)
        return output

    def _begin(
        self,
        formation: Formation,
        batch: Batch,
        candidates: Candidates,
        hidden: bool,
    ) -> Future[StepOutput]:
        """A step of a plan of several stages: the root's, after which others may begin."""
        assert formation.pipeline is not None
        run = formation.new_run(batch, candidates, hidden)
        formation.pipeline.begin(run)
        try:
            formation.pipeline.push(run, formation.first_stage(run))
        except Exception as error:
            formation.pipeline.drop(run, self._failed(formation, error))
        return run.future

    def _ended(self, formation: Formation, run: StepRun) -> StepOutput:
        """A step has been through all stages; in a thread of the pipeline's."""
        output = formation.finish(run)
        self._judge(formation, run.batch, output)
        self._completed(formation, run.batch, output)
        return output

    @property
    def _step_seconds(self) -> float:
        """Time limit of a step, after which the watchdog ends it."""
        # A lane that waits too long says so itself, and better: this is for the rest.
        grace = _WATCHDOG_GRACE if self.settings.lane == "mesh" else 0.0
        return self.settings.step_seconds + grace

    def _failed(self, formation: Formation, error: Exception) -> Exception:
        """The error of a step that failed with `error`; the formation is lost after, if it can be.

        Without workers only the step has failed, unless the root's own shard has.
        """
        if isinstance(error, _native.LaneError):
            formation.reports.unheard(error.rank)
            return self._mesh_broke(formation, 0, error.rank, str(error))
        if self._stands(formation):
            return error
        if isinstance(error, HearthError):
            if error.reason == Reason.PEER_LOST:
                return self._peer_lost(formation, error)
            return self._lose(formation, error)
        # The workers may have received the step: the next one would not match theirs.
        log.error("a step failed in the root", exc_info=error)
        problem = f"a step failed in the root: {type(error).__name__}: {error}"
        return self._lose(formation, HearthError(Reason.INTERNAL, problem))

    @property
    def _own_failed(self) -> bool:
        """True if the root's own shard cannot go on: its GPU is lost, or its weights' disk."""
        return self._shard is not None and self._shard.failed

    def _stands(self, formation: Formation) -> bool:
        """True if a failed step leaves the formation as it is: no other node took part in it."""
        return not formation.links and not self._own_failed

    def _judge(self, formation: Formation, batch: Batch, output: StepOutput) -> None:
        """Raises HearthError where a worker is at fault for rows that are not finite."""
        if not output.not_finite:
            return
        blamed = self._suspicion.judge(batch, output.not_finite)
        if blamed is not None:
            raise self._lose(formation, blamed)
        for address in self._suspicion.cleared():
            for listener in self._listeners:
                listener.worker_cleared(address)

    def _completed(self, formation: Formation, batch: Batch, output: StepOutput) -> None:
        """Counts a step, and calls the listeners for what it showed."""
        phase_name = phase_of(batch.rows, len(batch.output_rows))
        if formation.stages == 1:
            sync = output.wall_seconds - output.compute_seconds if formation.links else 0.0
        else:  # the rest of the time is other steps', which a stage computes meanwhile
            sync = max(sync for _, sync in output.node_seconds)
        self._metrics.step(phase_name, output.wall_seconds, sync)
        self._metrics.node_times(output.node_seconds)
        # Predictions are of short contexts.
        near = all(part.position < _COMPARED_POSITIONS for part in batch.sequences)
        if near and batch.rows == batch.decode_rows == 1:
            self._compare(output)
        # Steps in flight overlap: only the time since the last one ended is new.
        now = time.perf_counter()
        self._metrics.busy(min(output.wall_seconds, now - self._busy_until))
        self._busy_until = now
        self._metrics.traffic(output.sent_bytes, output.received_bytes)
        for address in output.leaving:
            for listener in self._listeners:
                listener.worker_leaving(address)
        if batch.output_rows and formation.worked(output.wall_seconds, _WORKED_SECONDS):
            for listener in self._listeners:
                listener.cluster_worked(tuple(link.address for link in formation.links))

    def _compare(self, output: StepOutput) -> None:
        """Counts a step of one sequence against the prediction; names nodes that differ by half."""
        drift = self._drift
        if drift is None:
            return
        if not drift.add(output.wall_seconds, output.node_seconds):
            return
        sentences = drift.suspects()
        self._metrics.measured(drift.decode)
        if drift.due:
            sentences += self._balance(drift)
        if not sentences:
            return
        for sentence in sentences:
            log.warning("%s", sentence)
        with self._board.change() as status:
            status.notes.extend(sentences)

    def _balance(self, drift: Drift) -> list[str]:
        """Asks for other shares where nodes take unequal times, or offers them in a sentence."""
        phase = self._state.phase
        how = self.settings.rebalance
        if how == "off" or drift is self._offered or not isinstance(phase, state.Serving):
            return []
        taken = how == "auto" and self.settings.shares is None
        now = time.monotonic()
        if taken and now - self._balanced_at < _BALANCE_SECONDS:
            return []  # at a later look
        workers = tuple(link.address for link in phase.formation.links)
        found = self.blueprint.faster_shares(workers, 1 / drift.decode, drift.node_seconds)
        if found is None:
            return []
        self._offered = drift  # once for a plan
        shares, gain = found
        shown = f"--shares {','.join(f'{share:g}' for share in shares)}"
        times = ", ".join(f"{seconds * 1e3:.3g}" for seconds in drift.node_seconds)
        found_so = f"root and workers compute {times} ms of a token: {shown} is expected to be "
        if not taken:
            return [f"{found_so}{gain:.2g} times as fast (--rebalance auto takes such shares)"]
        self._balanced_at = now
        for listener in self._listeners:
            listener.cluster_uneven(workers, shares)
        return [f"{found_so}{gain:.2g} times as fast, and will be taken when no request runs"]

    def _between(self, act: Callable[[], T]) -> T:
        """Calls `act` between two steps. Raises HearthError as a step does."""
        with self._stepping:
            phase = self._state.phase
            if not isinstance(phase, state.Serving):
                raise phase.error.copy()
            formation = phase.formation
            self._pages_epoch = self._epoch
            if formation.links:
                self._deadline = time.monotonic() + self.settings.step_seconds
            try:
                return act()
            except HearthError as error:
                if self._stands(formation):
                    raise
                raise self._lose(formation, error) from None
            finally:
                self._deadline = None

    def release_pages(self, first: int) -> None:
        """Lets every node give the memory of KV pages from `first` on back; no step may run."""
        with self._stepping:
            phase = self._state.phase
            if isinstance(phase, state.Serving):
                phase.formation.release_pages(first)

    def interrupt(self) -> None:
        """Ends a `form` that is under way, and makes later ones fail; steps go on."""
        self._interrupted.set()
        phase = self._state.phase
        if isinstance(phase, state.Forming):
            phase.attempt.interrupt()

    def close(self) -> None:
        """Ends everything and gives the leases back."""
        self.interrupt()
        self._closed.set()
        closed = HearthError(Reason.SHUTTING_DOWN, "the root is shutting down")
        self._release(self._state.close(closed), closed, 0)
        if self.archive is not None:
            self.archive.close()

    def dissolve(self) -> None:
        """Ends the formation, after the step that may be running on it, and gives leases back.

        Workers keep their shards for a while: the next plan may have the same.
        """
        again = HearthError(Reason.CLUSTER_NOT_READY, "the cluster is being formed again")
        self._release(self._state.dissolve(again), again, KEEP_SECONDS)

    def _release(self, formation: Formation | None, error: HearthError, keep_seconds: int) -> None:
        if self.archive is not None:
            self.archive.use(None)
        if formation is not None:
            formation.reports.settle(error)
            formation.fail(error)
            with self._stepping:
                formation.release(self._lease(), keep_seconds)

    def _check_broken(self, forming: Forming, formation: Formation) -> None:
        """A worker that was lost between the end of forming and the begin of serving."""
        try:
            forming.check()
        except HearthError as error:
            self._lose(formation, error)
            raise

    def _lease(self) -> worker_pb2.Lease:
        return worker_pb2.Lease(
            root_id=self._root_id, root_name=self.settings.name, epoch=self._epoch
        )

    def _stream_ended(self, link: WorkerLink, error: HearthError) -> None:
        """A Forward stream ended, whether the root ended it or not; in a thread of gRPC's."""
        phase = self._state.phase
        if isinstance(phase, state.Forming):
            phase.attempt.stream_ended(link, error)
            phase = self._state.phase  # the attempt may have ended before it recorded this
        if not isinstance(phase, state.Serving) or link not in phase.formation.links:
            return
        formation = phase.formation
        if link.ended is not None:
            formation.reports.add(link.address, link.ended)
        if error.reason == Reason.PEER_LOST:
            # It names another worker, whose own stream gives the reason, if it ends at all.
            arguments = (formation, error)
            threading.Thread(target=self._peer_lost, args=arguments, daemon=True).start()
        else:
            self._lose(formation, error)

    def _peer_lost(self, formation: Formation, error: HearthError) -> HearthError:
        """The cause of a worker's report (PEER_LOST) that it does not hear another rank."""
        formation.reports.add(error.metadata["worker"], error)
        by = formation.reports.rank(error.metadata["worker"])
        return self._mesh_broke(formation, by, blame.rank_of(error), error.message)

    def _mesh_broke(self, formation: Formation, by: int, rank: int, problem: str) -> HearthError:
        """The cause of a mesh that broke between `by` and `rank`; the formation is lost after."""
        began = formation.oldest or self._step_began
        late = time.monotonic() - began >= self.settings.step_seconds
        cause = formation.reports.cause(by, rank, problem)
        limit = self.settings.step_seconds if late else None
        cause = refine(formation.links, formation.reports, cause, problem, limit)
        return self._lose(formation, cause)

    def _lose(self, formation: Formation, error: HearthError) -> HearthError:
        """The formation cannot go on: ends every stream, and calls the listeners.

        Returns a copy of the error that counts, which is the first.
        """
        error = error.copy()  # what is kept must not hold the frames of a step, and so the shard
        if "worker" in error.metadata or self._own_failed:
            error.code = Code.UNAVAILABLE  # requests wait, whatever the node's reason is
        if not self._state.lose(formation, error):
            return (self.lost or error).copy()
        formation.reports.settle(error)
        if error.reason == Reason.SHUTTING_DOWN:
            log.info("a worker left: %s", error.message)
        else:
            log.warning("cluster lost: %s", error.message)
            self._metrics.fault(error.reason)
        formation.fail(error)
        with self._board.change() as status:
            describe.degraded(status, error)
        for listener in self._listeners:
            listener.cluster_lost(error)
        return error.copy()

    def _watch(self) -> None:
        """Ends the streams of a step that takes too long; wakes up once a second."""
        while not self._closed.wait(1.0):
            deadline, phase = self._deadline, self._state.phase
            if not isinstance(phase, state.Serving):
                continue
            formation = phase.formation
            since = formation.waiting_since
            if deadline is None and since is not None:
                deadline = since + self._step_seconds
            if deadline is None or time.monotonic() < deadline:
                continue
            self._deadline = None
            seconds = self.settings.step_seconds
            # The one that is waited for; where none is, the root's own computing takes that long.
            waited = next((link for link in formation.links if link.waiting), None)
            if waited is not None:
                problem = (
                    f"worker {waited.name} did not answer a step within {seconds:g} s "
                    "(--step-seconds)"
                )
                waited.fail(HearthError(Reason.WORKER_UNFIT, problem))
            else:
                problem = f"a step took longer than {seconds:g} s: see --step-seconds"
                # UNAVAILABLE: requests wait, and are tried again.
                self._lose(formation, HearthError(Reason.DEADLINE, problem, {}, Code.UNAVAILABLE))
