"""Forms a cluster and runs its steps: the I/O around the planner.

`form` dials every worker, makes a plan, loads all shards at once (the root's own among them) and
opens the Forward streams. `run` is one step on all nodes. When a worker is lost, the step that is
running fails with an error that names it, and nothing runs until `form` has been called again.
"""

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hearth import _native
from hearth.common import system
from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import Metrics
from hearth.converter import Model
from hearth.root import messages
from hearth.root.board import Board
from hearth.root.formation import Formation, StepOutput, close_all
from hearth.root.lanes import HubLane, open_mesh
from hearth.root.links import WorkerLink
from hearth.root.loading import Loading
from hearth.root.planner import Plan, check_shares, make_plan, pages_for
from hearth.root.scheduler import Batch, Limits
from hearth.root.streaming import LoadEvent
from hearth.v1 import common_pb2, root_pb2, worker_pb2
from hearth.worker.shard import NodeShard

log = logging.getLogger(__name__)

# What ends when another thing broke: not the reason.
_CONSEQUENCES = {Reason.CANCELLED, Reason.WORKER_LOST, Reason.UNREACHABLE}
# The root's process beside weights and KV cache: Python, gRPC, tokenizer, buffers of a step.
_OVERHEAD_BYTES = 256 << 20
# How long the stream of a lost worker may take to say so, when another rank noticed first.
_TELL_SECONDS = 0.5
_WATCHDOG_GRACE = 2.0
# A worker that is there and answers, and cannot be used as things are.
_REFUSALS = {
    Reason.WORKER_BUSY,
    Reason.PROTOCOL_VERSION,
    Reason.OUT_OF_MEMORY,
    Reason.STREAM_IN_USE,
    Reason.BAD_SHARD,
}


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """How to form a cluster. Types by name: "f32", "f16", "q80"; lanes "mesh", "grpc"."""

    workers: tuple[str, ...] = ()
    shares: tuple[float, ...] | None = None
    threads: int | None = None
    pin: tuple[int, ...] = ()
    lane: str = "mesh"
    sync_type: str = "f32"
    kv_type: str = "f16"
    # Positions of one sequence; None: the model's, 4,096 at most.
    context: int | None = None
    # Sequences of full context that the KV cache has room for, where memory allows.
    sequences: int = 4
    page_size: int = 32
    max_step_tokens: int = 128
    # A step that takes longer is given up: some node hangs.
    step_seconds: float = 120.0
    memory_limit: int | None = None
    name: str = "root"


# Bytes of one node's shard that are there: (address or "local", event).
LoadListener = Callable[[str, LoadEvent], None]


class Cluster:
    """One model over the root and its workers.

    Forming, serving or lost: while it serves there is a Formation, and `lost` is None. `form` and
    `run` may come from different threads: `form` first ends a step that is running.
    """

    def __init__(
        self,
        model: Model,
        settings: ClusterSettings,
        *,
        metrics: Metrics | None = None,
        on_load: LoadListener = lambda address, event: None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._metrics = metrics or Metrics()
        self._on_load = on_load
        # Called, in any thread, when a worker of a serving cluster is lost.
        self.on_lost: Callable[[HearthError], None] = lambda error: None
        self._root_id = secrets.token_hex(16)
        self._epoch = 0
        self._board = Board()
        self._shard: NodeShard | None = None
        self._room = self._own_room()
        # Held for the length of a step; and, briefly, whenever the state below changes.
        self._stepping = threading.Lock()
        self._changing = threading.Lock()
        self._formation: Formation | None = None
        self._lost: HearthError | None = HearthError(
            Reason.CLUSTER_NOT_READY, "the cluster has not been formed"
        )
        self._told = threading.Event()
        # While forming: the links so far, and what broke first.
        self._links: list[WorkerLink] = []
        self._broken: HearthError | None = None
        self._loading: Loading | None = None
        self._interrupted = threading.Event()
        self._deadline: float | None = None
        self._watchdog: threading.Thread | None = None
        messages.check(settings.lane, settings.sync_type, settings.kv_type, model.spec)
        self.context = self._context()
        # Before anything is dialled: what cannot be cut is an error of the command line.
        check_shares(1 + len(settings.workers), settings.shares)
        self._plan = self._make_plan()
        if self.context > model.spec.context_size:
            note = (
                f"a context of {self.context} positions is more than the {model.spec.context_size} "
                f"that {model.spec.name} was made for: text past that may be poor"
            )
            self._plan = dataclasses.replace(self._plan, notes=(*self._plan.notes, note))
        with self._board.change() as status:
            status.CopyFrom(messages.forming(0, settings, self._plan))

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def lost(self) -> HearthError | None:
        """Why nothing runs until `form` is called; None while the cluster serves."""
        return self._lost

    def status(self) -> root_pb2.ClusterStatus:
        """See GetCluster."""
        return self._board.status()

    def subscribe(
        self, callback: Callable[[root_pb2.ClusterStatus], object]
    ) -> Callable[[], object]:
        """See WatchCluster; the function returned ends it."""
        return self._board.subscribe(callback)

    def expected_limits(self) -> Limits:
        """What `form` gives when no node is short of memory."""
        return self._limits_of(
            -(-self.context // self._settings.page_size) * self._settings.sequences
        )

    def form(self) -> Limits:
        """Dials, plans, loads and opens; what the scheduler may use then.

        Raises HearthError naming the worker that is absent, busy, of another version, short of
        memory or lost on the way; nothing runs then, and `form` may be called again.
        """
        self._dissolve()
        self._epoch += 1
        lease = self._lease()
        with self._board.change() as status:
            status.CopyFrom(messages.forming(self._epoch, self._settings, self._plan))
        self._broken = None
        self._links = [WorkerLink(address) for address in self._settings.workers]
        try:
            self._check_interrupted()
            limits = self._limits(self._describe())
            self._check_interrupted()
            shard = self._load(lease, limits)
            lane = self._open_lane()
            with self._changing:
                self._check_interrupted()
                formation = Formation(
                    self._plan, shard, self._links, lane, self._settings.sync_type
                )
                self._formation, self._lost = formation, None
                self._told.clear()
                self._links = []
        except BaseException as error:
            raise self._not_formed(error, lease) from None
        if self._watchdog is None and formation.links:
            self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._watchdog.start()
        with self._board.change() as status:
            # Unless a worker was lost since: that has been told, and must stay.
            if self._lost is None:
                messages.serving(status)
        return limits

    def run(self, batch: Batch, candidates: int = 0) -> StepOutput:
        """One step on all nodes. Raises HearthError when a worker is lost: then `form` again.

        candidates: how many of each row's best tokens are enough; 0 means whole rows.
        """
        with self._stepping:
            formation = self._formation
            if formation is None or self._lost is not None:
                raise self._lost or HearthError(Reason.CLUSTER_NOT_READY, "not formed")
            if formation.links:
                # A lane that waits too long says so itself, and better: this is for the rest.
                grace = _WATCHDOG_GRACE if self._settings.lane == "mesh" else 0.0
                self._deadline = time.monotonic() + self._settings.step_seconds + grace
            try:
                output = formation.step(batch, candidates)
            except _native.LaneError as error:
                raise self._peer_lost(formation, error.rank, str(error)) from None
            except HearthError as error:
                if not formation.links:
                    raise
                if error.reason == Reason.PEER_LOST:
                    raise self._peer_lost(formation, _rank_of(error), error.message) from None
                self._lose(formation, error)
                raise self._lost or error from None
            finally:
                self._deadline = None
        phase = "decode" if batch.decode_rows == batch.rows else "prefill"
        sync = output.wall_seconds - output.compute_seconds if formation.links else 0.0
        self._metrics.step(phase, output.wall_seconds, sync)
        self._metrics.traffic(output.sent_bytes, output.received_bytes)
        return output

    def interrupt(self) -> None:
        """Ends a `form` that is under way, and makes later ones fail; steps go on."""
        self._interrupted.set()
        loading = self._loading
        if loading is not None:
            loading.give_up()
        for link in list(self._links):
            link.close()

    def close(self) -> None:
        """Ends everything and gives the leases back."""
        self.interrupt()
        self._dissolve()

    def _dissolve(self) -> None:
        """Ends the formation, after the step that may be running on it."""
        again = HearthError(Reason.CLUSTER_NOT_READY, "the cluster is being formed again")
        with self._changing:
            formation, self._formation = self._formation, None
            self._lost = self._lost or again
        if formation is not None:
            formation.fail(again)
            with self._stepping:
                formation.release(self._lease())

    def _not_formed(self, error: BaseException, lease: worker_pb2.Lease) -> BaseException:
        """Cleans up after a `form` that failed; the error that tells why."""
        links, self._links = self._links, []
        if self._interrupted.is_set() and isinstance(error, HearthError):
            error = HearthError(Reason.SHUTTING_DOWN, "the root is shutting down")
        elif isinstance(error, HearthError) and error.reason in _CONSEQUENCES:
            error = self._broken or error
        close_all(links, lease)
        if isinstance(error, HearthError):
            self._lost = error
        with self._board.change() as status:
            messages.degraded(status, error)
        return error

    def _check_interrupted(self) -> None:
        if self._interrupted.is_set():
            raise HearthError(Reason.SHUTTING_DOWN, "the root is shutting down")
        if self._broken is not None:
            raise self._broken

    def _context(self) -> int:
        spec, wanted = self._model.spec, self._settings.context
        return min(spec.context_size, 4096) if wanted is None else wanted

    def _own_room(self) -> int:
        free = max(0, system.memory_available() - _OVERHEAD_BYTES)
        limit = self._settings.memory_limit
        return free if limit is None else min(free, limit)

    def _open_lane(self) -> HubLane | _native.MeshLane | None:
        if not self._links:
            return None
        sync_type = messages.SYNC[self._settings.sync_type]
        if self._settings.lane == "mesh":
            return open_mesh(self._links, sync_type, self._settings.step_seconds)
        return HubLane(self._links, sync_type)

    def _make_plan(self) -> Plan:
        settings = self._settings
        nodes = 1 + len(settings.workers)
        return make_plan(self._model.spec, self._model.tensor_type, nodes, settings.shares)

    def _lease(self) -> worker_pb2.Lease:
        return worker_pb2.Lease(
            root_id=self._root_id, root_name=self._settings.name, epoch=self._epoch
        )

    def _describe(self) -> list[common_pb2.NodeInfo]:
        """What every worker is. Raises HearthError when one is absent or busy."""
        if not self._links:
            return []
        with ThreadPoolExecutor(len(self._links), "describe") as pool:
            answers = list(pool.map(WorkerLink.describe, self._links))
        for link, answer in zip(self._links, answers, strict=True):
            if answer.held_by:
                # We have given our own leases back: this is another root's, or our dead ancestor's,
                # which ends by itself. What memory is free can only be said after that.
                problem = f"worker {link.name} is busy: root {answer.held_by!r} holds it"
                raise HearthError(Reason.WORKER_BUSY, problem, {"worker": link.address})
        infos = [answer.node for answer in answers]
        with self._board.change() as status:
            for node, info in zip(status.nodes[1:], infos, strict=True):
                node.info.CopyFrom(info)
                node.state = root_pb2.NODE_STATE_READY
        return infos

    def _limits(self, infos: list[common_pb2.NodeInfo]) -> Limits:
        settings = self._settings
        rooms = [("the root", self._room)]
        rooms += [(f"worker {info.name}", info.memory_available_bytes) for info in infos]
        try:
            pages = pages_for(
                self._model.spec,
                self._plan,
                settings.kv_type,
                settings.page_size,
                self.context,
                settings.sequences,
                rooms,
            )
        except HearthError as error:
            rank = int(error.metadata["rank"])
            if rank:
                error.metadata["worker"] = self._links[rank - 1].address
            raise
        return self._limits_of(pages)

    def _limits_of(self, pages: int) -> Limits:
        settings = self._settings
        return Limits(
            context_size=self.context,
            max_pages=pages,
            page_size=settings.page_size,
            max_step_tokens=settings.max_step_tokens,
            max_running=min(16, settings.max_step_tokens),
        )

    def _load(self, lease: worker_pb2.Lease, limits: Limits) -> NodeShard:
        """All shards at once; the workers' Forward streams are open after."""
        links = self._links
        configs = [
            messages.shard_config(self._model.spec, self._plan, rank, self._settings, limits)
            for rank in range(1 + len(links))
        ]
        with self._board.change() as status:
            for node, config in zip(status.nodes, configs, strict=True):
                node.state = root_pb2.NODE_STATE_LOADING
                node.shard.CopyFrom(config)
        held = self._shard
        if held is not None and held.config != configs[0]:
            held = self._shard = None
        threads = self._settings.threads or system.cores()
        loading = Loading(self._model, self._plan, self._progress, self._metrics)
        begins = [
            messages.load_begin(self._model, self._plan, rank, configs[rank], lease, self._settings)
            for rank in range(1, 1 + len(links))
        ]
        self._loading = loading
        try:
            self._check_interrupted()  # an interrupt before this line saw no loading to end
            self._shard = loading.run(
                held or (lambda: NodeShard(configs[0], threads, self._settings.pin)),
                links,
                begins,
                self._stream_ended,
            )
        finally:
            self._loading = None
        return self._shard

    def _progress(self, rank: int, event: LoadEvent) -> None:
        with self._board.change() as status:
            node = status.nodes[rank]
            node.weight_bytes_loaded = event.network_bytes + event.cache_bytes
            node.weight_bytes_from_network = event.network_bytes
            node.weight_bytes_from_cache = event.cache_bytes if rank else 0
            address = node.address
        self._on_load(address, event)

    def _stream_ended(self, link: WorkerLink, error: HearthError) -> None:
        """A Forward stream ended, by our doing or not; in a thread of gRPC's."""
        with self._changing:
            formation = self._formation
            if formation is None or link not in formation.links:
                loading = self._loading
                if link in self._links and not (loading is not None and loading.given_up):
                    self._broken = self._broken or error
                    if loading is not None:
                        loading.give_up()
                return
        if error.reason == Reason.PEER_LOST:
            # It names another; that one's own stream tells why, if it ends at all.
            arguments = (formation, _rank_of(error), error.message)
            threading.Thread(target=self._peer_lost, args=arguments, daemon=True).start()
        else:
            self._lose(formation, error)

    def _peer_lost(self, formation: Formation, rank: int, problem: str) -> HearthError:
        """Why a mesh broke at `rank`: what that worker's own stream says, if it says so soon."""
        if self._told.wait(_TELL_SECONDS) and self._lost is not None:
            return self._lost
        # Rank 0 is the root: it gave up, for a reason that it has told.
        link = formation.worker(rank)
        name, metadata = ("root", {}) if link is None else (link.name, {"worker": link.address})
        error = HearthError(Reason.WORKER_LOST, f"worker {name} was lost: {problem}", metadata)
        self._lose(formation, error)
        return self._lost or error

    def _lose(self, formation: Formation, error: HearthError) -> None:
        """The formation cannot go on: ends every stream, and tells. The first reason counts."""
        with self._changing:
            if self._formation is not formation or self._lost is not None:
                return
            self._lost = error
            self._told.set()
        log.warning("cluster lost: %s", error.message)
        formation.fail(error)
        with self._board.change() as status:
            messages.degraded(status, error)
        self.on_lost(error)

    def _watch(self) -> None:
        """Ends the streams of a step that takes too long; wakes up once a second."""
        while not self._interrupted.wait(1.0):
            deadline, formation = self._deadline, self._formation
            if deadline is None or formation is None or time.monotonic() < deadline:
                continue
            self._deadline = None
            seconds = self._settings.step_seconds
            # The one that is waited for; where none is, the root's own computing takes that long.
            waited = next((link for link in formation.links if link.waiting), None)
            if waited is not None:
                problem = f"worker {waited.name} did not answer a step within {seconds:g} s"
                waited.fail(HearthError(Reason.WORKER_LOST, problem))
            else:
                problem = f"a step took longer than {seconds:g} s: see --step-seconds"
                self._lose(formation, HearthError(Reason.DEADLINE, problem))


def _rank_of(error: HearthError) -> int:
    """The rank that a PEER_LOST names; 0, which is nobody's, when it names none."""
    text = error.metadata.get("rank", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
