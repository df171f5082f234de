"""Forms a cluster and runs its steps: the I/O around the planner.

`form` dials every worker, makes a plan, loads all shards at once (the root's own among them) and
opens the Forward streams. `run` is one step on all nodes. When a worker is lost, the step that is
running fails with an error that names it, and nothing runs until `form` has been called again.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common import system, wire
from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import Metrics
from hearth.converter import Model
from hearth.root import messages
from hearth.root.board import Board
from hearth.root.lanes import HubLane, open_mesh
from hearth.root.links import WorkerLink, expect_result
from hearth.root.loading import Loading
from hearth.root.planner import Plan, check_shares, make_plan, pages_for
from hearth.root.scheduler import Batch, Limits
from hearth.root.streaming import LoadEvent
from hearth.v1 import common_pb2, root_pb2, worker_pb2
from hearth.worker.shard import NodeShard

log = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]
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


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A step's logits, and where its time went. Seconds of the root's clock."""

    # f32 [output rows, vocab_size]; of candidates: [output rows, n], and their u32 token ids.
    logits: F32
    ids: npt.NDArray[np.uint32] | None
    wall_seconds: float
    # The slowest node's computing; the rest of the wall time is sync, transport and waiting.
    compute_seconds: float
    sent_bytes: int
    received_bytes: int


# Bytes of one node's shard that are there: (address or "local", event).
LoadListener = Callable[[str, LoadEvent], None]


class Cluster:
    """One model over the root and its workers. `run` and `form` are for one thread at a time."""

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
        self._links: list[WorkerLink] = []
        self._shard: NodeShard | None = None
        self._lane: HubLane | _native.MeshLane | None = None
        self._step_id = 0
        self._room = self._own_room()
        self._lost: HearthError | None = None
        self._losing = threading.Lock()
        self._told = threading.Event()
        self._deadline: float | None = None
        self._closed = threading.Event()
        self._loading: Loading | None = None
        self._watchdog: threading.Thread | None = None
        self._last: StepOutput | None = None
        messages.check(settings.lane, settings.sync_type, settings.kv_type, model.spec)
        self.context = self._context()
        # Before anything is dialled: what cannot be cut is an error of the command line.
        check_shares(1 + len(settings.workers), settings.shares)
        self._plan = self._make_plan()

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def lost(self) -> HearthError | None:
        """Why nothing runs until `form` is called again; None while all is well."""
        return self._lost

    @property
    def last_step(self) -> StepOutput | None:
        """The step that ran last; for measurements."""
        return self._last

    def status(self) -> root_pb2.ClusterStatus:
        """See GetCluster."""
        return self._board.status()

    def subscribe(
        self, callback: Callable[[root_pb2.ClusterStatus], object]
    ) -> Callable[[], object]:
        """See WatchCluster; the function returned ends it."""
        return self._board.subscribe(callback)

    def form(self) -> Limits:
        """Dials, plans, loads and opens; what the scheduler may use then.

        Raises HearthError naming the worker that is absent, busy, of another version, short of
        memory or lost on the way; the cluster is then as if it had not been called.
        """
        self._release()
        self._epoch += 1
        self._lost = None
        self._told.clear()
        lease = self._lease()
        with self._board.change() as status:
            status.CopyFrom(messages.forming(self._epoch, self._settings, self._plan))
        links = [WorkerLink(address) for address in self._settings.workers]
        self._links = links
        try:
            infos = self._describe(links)
            limits = self._limits(infos)
            self._load(links, lease, limits)
            self._lane = self._open_lane(links)
        except BaseException as error:
            self._release()
            message = error.message if isinstance(error, HearthError) else str(error)
            reason = error.reason if isinstance(error, HearthError) else ""
            state = root_pb2.NODE_STATE_REFUSED if reason in _REFUSALS else root_pb2.NODE_STATE_LOST
            self._degrade(message or type(error).__name__, self._culprit(error), state)
            raise
        self._step_id = 0
        if self._watchdog is None and links:
            self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._watchdog.start()
        with self._losing:  # what is lost meanwhile must have the last word
            if self._lost is not None:
                raise self._lost
            with self._board.change() as status:
                status.state = root_pb2.CLUSTER_STATE_SERVING
                status.reason = ""
                for node in status.nodes:
                    node.state = root_pb2.NODE_STATE_SERVING
                    node.reason = ""
        return limits

    def run(self, batch: Batch, candidates: int = 0) -> StepOutput:
        """One step on all nodes. Raises HearthError when a worker is lost: then `form` again.

        candidates: how many of each row's best tokens are enough; 0 means whole rows.
        """
        if self._lost is not None:
            raise self._lost
        if self._shard is None:
            raise HearthError(Reason.CLUSTER_NOT_READY, "the cluster has not been formed")
        start = time.perf_counter()
        if self._links:
            # A lane that waits too long says so itself, and better: this is for everything else.
            grace = _WATCHDOG_GRACE if self._settings.lane == "mesh" else 0.0
            self._deadline = time.monotonic() + self._settings.step_seconds + grace
        try:
            output = self._run(batch, candidates, start)
        except _native.LaneError as error:
            raise self._peer_lost(error.rank, str(error)) from None
        except HearthError as error:
            if not self._links:
                raise
            if error.reason == Reason.PEER_LOST:
                raise self._peer_lost(int(error.metadata["rank"]), error.message) from None
            self._lose(error)
            raise self._lost or error from None
        finally:
            self._deadline = None
        phase = "decode" if batch.decode_rows == batch.rows else "prefill"
        sync = output.wall_seconds - output.compute_seconds if self._links else 0.0
        self._metrics.step(phase, output.wall_seconds, sync)
        self._metrics.traffic(output.sent_bytes, output.received_bytes)
        self._last = output
        return output

    def close(self) -> None:
        """Ends the streams and gives the leases back; ends a `form` that is under way."""
        self._closed.set()
        loading = self._loading
        if loading is not None:
            loading.give_up()
        self._release()

    def _run(self, batch: Batch, candidates: int, start: float) -> StepOutput:
        assert self._shard is not None
        shard, links, lane = self._shard, self._links, self._lane
        x = shard.embed(np.array(batch.tokens, np.uint32))
        sequences = [(len(s.tokens), s.position, list(s.pages)) for s in batch.sequences]
        sent = received = 0
        self._step_id += 1
        if lane is not None:
            kind = messages.activation_type(self._settings.sync_type)
            data = wire.encode(x, kind)
            if kind != common_pb2.SYNC_TYPE_F32:
                x = wire.decode(data, kind, *x.shape)
            request = messages.step(self._step_id, batch, data, kind, candidates)
            for link in links:
                link.send(request)
            lane.begin(self._step_id)
            sent = len(data) * len(links)
        own = shard.step(x, sequences, batch.output_rows, lane)
        slowest = own.compute_ns
        parts = [messages.own_logits(own.logits, candidates if links else 0)]
        for link, node in zip(links, self._plan.nodes[1:], strict=True):
            result = expect_result(link.receive(), link, self._step_id)
            rows = len(batch.output_rows)
            parts.append(messages.logits(result, link.name, rows, node.vocab, candidates))
            slowest = max(slowest, result.timing.compute_ns)
            received += len(result.logits) + len(result.candidate_ids)
        if lane is not None:
            sent += lane.sent_bytes
            received += lane.received_bytes
        logits, ids = messages.join_logits(parts)
        wall = time.perf_counter() - start
        return StepOutput(logits, ids, wall, min(slowest / 1e9, wall), sent, received)

    def _context(self) -> int:
        spec, wanted = self._model.spec, self._settings.context
        return min(spec.context_size, 4096) if wanted is None else wanted

    def _own_room(self) -> int:
        free = max(0, system.memory_available() - _OVERHEAD_BYTES)
        limit = self._settings.memory_limit
        return free if limit is None else min(free, limit)

    def _open_lane(self, links: list[WorkerLink]) -> HubLane | _native.MeshLane | None:
        if not links:
            return None
        sync_type = messages.SYNC[self._settings.sync_type]
        if self._settings.lane == "mesh":
            return open_mesh(links, sync_type, self._settings.step_seconds)
        return HubLane(links, sync_type)

    def _make_plan(self) -> Plan:
        settings = self._settings
        nodes = 1 + len(settings.workers)
        return make_plan(self._model.spec, self._model.tensor_type, nodes, settings.shares)

    def _lease(self) -> worker_pb2.Lease:
        return worker_pb2.Lease(
            root_id=self._root_id, root_name=self._settings.name, epoch=self._epoch
        )

    def _describe(self, links: list[WorkerLink]) -> list[common_pb2.NodeInfo]:
        """What every worker is. Raises HearthError when one is absent or busy."""
        if not links:
            return []

        def ask(link: WorkerLink) -> common_pb2.NodeInfo:
            answer = link.describe()
            if answer.held_by and answer.held_by != self._settings.name:
                log.info("worker %s is held by root %s", link.name, answer.held_by)
            return answer.node

        with ThreadPoolExecutor(len(links), "describe") as pool:
            infos = list(pool.map(ask, links))
        with self._board.change() as status:
            for node, info in zip(status.nodes[1:], infos, strict=True):
                node.info.CopyFrom(info)
                node.state = root_pb2.NODE_STATE_READY
        return infos

    def _limits(self, infos: list[common_pb2.NodeInfo]) -> Limits:
        settings = self._settings
        rooms = [("the root", self._room)]
        rooms += [
            (f"worker {link.name}", info.memory_available_bytes)
            for link, info in zip(self._links, infos, strict=True)
        ]
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
            for link, (name, _) in zip(self._links, rooms[1:], strict=True):
                if error.metadata.get("node") == name:
                    error.metadata["worker"] = link.address
            raise
        return Limits(
            context_size=self.context,
            max_pages=pages,
            page_size=settings.page_size,
            max_step_tokens=settings.max_step_tokens,
            max_running=min(16, settings.max_step_tokens),
        )

    def _load(self, links: list[WorkerLink], lease: worker_pb2.Lease, limits: Limits) -> None:
        """All shards at once; the workers' Forward streams are open after."""
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
        self._loading = loading
        begins = [
            messages.load_begin(self._model, self._plan, rank, configs[rank], lease, self._settings)
            for rank in range(1, 1 + len(links))
        ]
        try:
            self._shard = loading.run(
                held or (lambda: NodeShard(configs[0], threads, self._settings.pin)),
                links,
                begins,
                self._stream_ended,
            )
        finally:
            self._loading = None

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
        if link not in self._links or self._closed.is_set():
            return
        if error.reason == Reason.PEER_LOST:
            # It names another; that one's own stream tells why, if it ends at all.
            rank = int(error.metadata.get("rank", "0"))
            threading.Thread(target=self._peer_lost, args=(rank, error.message)).start()
        else:
            self._lose(error)

    def _peer_lost(self, rank: int, problem: str) -> HearthError:
        """Why a mesh broke at `rank`: what that worker's own stream says, if it says so soon."""
        if self._told.wait(_TELL_SECONDS) and self._lost is not None:
            return self._lost
        # Rank 0 is the root: it gave up, for a reason that it has told.
        link = self._links[rank - 1] if 1 <= rank <= len(self._links) else None
        name, metadata = ("the root", {}) if link is None else (link.name, {"worker": link.address})
        error = HearthError(Reason.WORKER_LOST, f"worker {name} was lost: {problem}", metadata)
        self._lose(error)
        return self._lost or error

    def _lose(self, error: HearthError) -> None:
        """The cluster cannot go on: ends every stream, and tells."""
        with self._losing:
            if self._lost is not None:
                return
            self._lost = error
            self._told.set()
        if isinstance(self._lane, _native.MeshLane):
            self._lane.abort()
        culprit = error.metadata.get("worker", "")
        log.warning("cluster lost: %s", error.message)
        for link in self._links:
            if link.address != culprit:
                link.fail(error)
        self._degrade(error.message, culprit)
        self.on_lost(error)

    def _degrade(
        self,
        reason: str,
        culprit: str,
        culprit_state: "root_pb2.NodeState.ValueType" = root_pb2.NODE_STATE_LOST,
    ) -> None:
        with self._board.change() as status:
            status.state = root_pb2.CLUSTER_STATE_DEGRADED
            status.reason = reason
            for node in status.nodes:
                if node.address == culprit:
                    node.state = culprit_state
                    node.reason = reason
                elif node.state == root_pb2.NODE_STATE_SERVING:
                    node.state = root_pb2.NODE_STATE_READY
                    node.reason = "waiting for the others"

    @staticmethod
    def _culprit(error: BaseException) -> str:
        return error.metadata.get("worker", "") if isinstance(error, HearthError) else ""

    def _release(self) -> None:
        links, self._links = self._links, []
        self._lane = None  # closes the mesh's connections
        lease = self._lease()
        with ThreadPoolExecutor(max(1, len(links)), "release") as pool:
            for link in links:
                pool.submit(link.close, lease)

    def _watch(self) -> None:
        """Ends the streams of a step that takes too long; wakes up once a second."""
        while not self._closed.wait(1.0):
            deadline = self._deadline
            if deadline is None or time.monotonic() < deadline:
                continue
            self._deadline = None
            seconds = self._settings.step_seconds
            # The one that is waited for; where none is, the root's own computing takes that long.
            waited = next((link for link in self._links if link.waiting), None)
            if waited is not None:
                problem = f"worker {waited.name} did not answer a step within {seconds:g} s"
                waited.fail(HearthError(Reason.WORKER_LOST, problem))
            elif self._links:
                problem = f"a step took longer than {seconds:g} s: see --step-seconds"
                self._lose(HearthError(Reason.DEADLINE, problem))
