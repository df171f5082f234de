"""One epoch of a cluster: its shard, links and lane, and the steps they run."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from hearth.common import wire
from hearth.common.candidates import WHOLE_ROWS, Candidates
from hearth.common.errors import HearthError, Reason
from hearth.root.cluster import logits as parts
from hearth.root.cluster import wire as plans
from hearth.root.cluster.archive import PlanPages
from hearth.root.cluster.finite import of_stages
from hearth.root.cluster.lanes import Lanes
from hearth.root.cluster.links import WorkerLink
from hearth.root.cluster.pipeline import Leg, Pipeline
from hearth.root.cluster.reports import Reports
from hearth.root.cluster.stages import RemoteStage
from hearth.root.cluster.stepping import StepRun
from hearth.root.planning.cut import joined
from hearth.root.planning.plan import Plan
from hearth.root.scheduling.batch import Batch, StepOutput
from hearth.v1 import common_pb2, worker_pb2
from hearth.worker.shape import row_size
from hearth.worker.shard import NodeShard

_NO_POSITIONS = np.empty(0, np.uint32)


class Formation:
    """A formed cluster, until it ends; `fail` may be called by any thread."""

    def __init__(
        self,
        plan: Plan,
        shard: NodeShard,
        links: Sequence[WorkerLink],
        lanes: Lanes,
        sync_type: str,
        reports: Reports,
    ) -> None:
        """links: the workers in the plan's order."""
        self.links = tuple(links)
        self.reports = reports
        self._plan = plan
        self._shard = shard
        # Of the root's stage: its workers, and the path of its syncs (None: the root is alone).
        self._mates = self.links[: len(plan.stages[0].ranks) - 1]
        self._lane = lanes.syncs
        self._lanes = lanes
        self._behind = _remote_stages(plan, shard, links, sync_type, relayed=lanes.relayed)
        # Takes steps through the stages behind the root's; None with one stage.
        self.pipeline: Pipeline | None = None
        self._sync_type = sync_type
        self._step_id = 0
        # Of the root's own shard.
        self.tables = shard.tables
        self.tables.end_plan()
        # Its KV pages on disk, if any are kept there.
        self.pages: PlanPages | None = None
        self._worked_seconds = 0.0
        # Address of the worker that caused the failure.
        self._culprit = ""

    @property
    def stages(self) -> int:
        """Number of stages."""
        return 1 + len(self._behind)

    @property
    def oldest(self) -> float | None:
        """See Pipeline; None without one."""
        return None if self.pipeline is None else self.pipeline.oldest

    @property
    def waiting_since(self) -> float | None:
        """See Pipeline; None without one."""
        return None if self.pipeline is None else self.pipeline.waiting_since

    def _positions(self, batch: Batch) -> npt.NDArray[np.uint32]:
        """Position of each token of a batch; empty if the model has no learned positions."""
        if not self._shard.config.learned_positions:
            return _NO_POSITIONS
        return np.concatenate(
            [np.arange(s.position, s.position + len(s.tokens)) for s in batch.sequences],
            dtype=np.uint32,
            casting="unsafe",
        )

    def step(
        self,
        batch: Batch,
        candidates: Candidates,
        hidden: bool = False,
    ) -> StepOutput:
        """One forward pass on all nodes of a plan of one stage.

        Raises HearthError, or LaneError of the mesh. hidden: return the final hidden states too.
        After the last sync every rank of the last stage has them whole, the root among them.
        """
        run = self.new_run(batch, candidates, hidden)
        self._own_stage(run)
        return self.finish(run)

    def new_run(self, batch: Batch, candidates: Candidates, hidden: bool = False) -> StepRun:
        """The next step, before it begins."""
        self._step_id += 1
        alone = not self._mates and not self._behind
        if alone and (candidates.allowed or candidates.draws):
            # The root has all logits: the sampler mostly needs no mask to choose from them, and a
            # draw looks at each once.
            candidates = WHOLE_ROWS
        return StepRun(self._step_id, batch, candidates, hidden)

    def first_stage(self, run: StepRun) -> bytes:
        """The root's stage of a step in a plan of several; its output, for the pipeline.

        Raises HearthError, or LaneError of the mesh.
        """
        if not self._lanes.relayed:
            for stage in self._behind:
                stage.send(run)
        x = self._own_stage(run)
        data = wire.encode(x, plans.activation_type(self._sync_type))
        if self._lanes.relayed:
            return data
        run.sent += self._lanes.send_on(run.step_id, data)
        return b""

    def legs(self) -> list[Leg]:
        """The way of a step behind the root's stage, for a Pipeline."""
        if self._lanes.relayed:
            return [partial(_relay, stage) for stage in self._behind]
        # Nodes send activations to each other: there is nothing to do between two stages.
        return [partial(_gather, self._behind)] if self._behind else []

    def _own_stage(self, run: StepRun) -> npt.NDArray[np.float32]:
        """The root's stage of a step: its output, f32 [rows, row_size]."""
        batch, lane, last = run.batch, self._lane, not self._behind
        x = self._shard.embed(np.array(batch.tokens, np.uint32), self._positions(batch))
        self.tables.forget(batch.reset, batch.ended)
        sequences = [
            (
                len(s.tokens),
                s.position,
                self.tables.step(s.seq_id, s.position, len(s.tokens), s.kept_pages, s.new_pages),
            )
            for s in batch.sequences
        ]
        if lane is not None:
            kind = plans.activation_type(self._sync_type)
            data = wire.encode(x, kind)
            if kind != common_pb2.SYNC_TYPE_F32:
                x = wire.decode(data, kind, *x.shape)
            request = plans.step(run.step_id, batch, data, kind, run.candidates, last=last)
            for link in self._mates:
                link.send(request)
            lane.begin(run.step_id)
            run.sent += len(data) * len(self._mates)
        slots = [self.tables.slot(s.seq_id) for s in batch.sequences]
        for s, slot in zip(batch.sequences, slots, strict=True):
            if s.restore is not None:
                self._shard.restore(s.restore, slot, s.position)
        undo = [s.undo for s in batch.sequences]
        outputs = batch.output_rows if last else ()
        own = self._shard.step(x, sequences, outputs, lane, slots, undo)
        for s, slot in zip(batch.sequences, slots, strict=True):
            if s.save is not None:
                self._shard.save(slot, s.save, s.position + len(s.tokens))
        run.begin_stage()
        run.add_node(own.compute_ns, own.sync_ns, dict(own.not_finite))
        if last:
            run.states = self._shard.final_norm(own.activations) if run.hidden else None
            vocabs = [node.vocab for node in self._plan.stages[0].ranks]
            run.joined = parts.JoinedLogits(len(batch.output_rows), vocabs, run.candidates.count)
            run.joined.add(parts.own_logits(own.logits, run.candidates))
        x = own.activations
        del own  # its logits are in `joined`
        for link, node in zip(self._mates, self._plan.stages[0].ranks[1:], strict=True):
            run.collect(link.receive(), link, node)
        run.end_stage()
        if lane is not None:
            run.sent += lane.sent_bytes
            run.received += lane.received_bytes
        return x

    def finish(self, run: StepRun) -> StepOutput:
        """The output of a step whose last stage is done."""
        addresses = ["", *(link.address for link in self.links)]
        firsts = [begin for begin, _ in joined([len(each.ranks) for each in self._plan.stages])]
        not_finite = {
            row: addresses[0 if place is None else firsts[place[0]] + place[1]]
            for row, place in of_stages(run.seen).items()
        }
        return run.output(not_finite)

    def release_pages(self, first: int) -> None:
        """Gives the memory of KV pages from `first` on back, on all nodes; they hold nothing."""
        release = worker_pb2.PageRelease(first_page=first)
        for link in self.links:
            link.send(worker_pb2.ForwardRequest(page_release=release))
        self.tables.release(first)
        self._shard.release_pages(first)

    def worked(self, seconds: float, enough: float) -> bool:
        """Count the time of a step with logits; True once, when all are `enough`."""
        before, self._worked_seconds = self._worked_seconds, self._worked_seconds + seconds
        return before < enough <= self._worked_seconds

    def fail(self, error: HearthError) -> None:
        """Ends every stream with `error`, and the running step."""
        self._lanes.abort()
        # The root reaches the workers of these: their leases are released.
        reached = error.reason in (Reason.PEER_LOST, Reason.WORKER_UNFIT)
        self._culprit = "" if reached else error.metadata.get("worker", "")
        for link in self.links:
            if link.address != self._culprit:
                link.fail(error)
        if self.pipeline is not None:
            self.pipeline.fail(error)

    def release(self, lease: worker_pb2.Lease, keep_seconds: int = 0) -> None:
        """Closes the connections and releases the leases; no step may be running.

        keep_seconds: see ReleaseRequest.
        """
        # Closed here because the error of a failed step holds its frames, and these the lane, until
        # it is collected.
        self._lanes.close()
        self._lane = None
        close_all(self.links, lease, self._culprit, keep_seconds)
        if self.pipeline is not None:
            self.pipeline.close()


def close_all(
    links: Sequence[WorkerLink], lease: worker_pb2.Lease, lost: str = "", keep_seconds: int = 0
) -> None:
    """Closes links in parallel and releases their leases, except that of the worker at `lost`.

    keep_seconds: see ReleaseRequest.
    """
    if links:
        with ThreadPoolExecutor(len(links), "release") as pool:
            for link in links:
                pool.submit(link.close, None if link.address == lost else lease, keep_seconds)


def _remote_stages(
    plan: Plan,
    shard: NodeShard,
    links: Sequence[WorkerLink],
    sync_type: str,
    *,
    relayed: bool,
) -> list[RemoteStage]:
    """The stages behind the root's."""
    width, hidden_size = row_size(shard.config), shard.config.hidden_size
    spans = joined([len(stage.ranks) for stage in plan.stages])
    return [
        RemoteStage(
            stage,
            links[begin - 1 : end - 1],
            sync_type,
            width,
            hidden_size,
            last=stage is plan.stages[-1],
            relayed=relayed,
        )
        for stage, (begin, end) in zip(plan.stages[1:], spans[1:], strict=True)
    ]


def _relay(stage: RemoteStage, run: StepRun, activations: bytes) -> bytes:
    """A leg of the grpc lane: one stage."""
    stage.send(run, activations)
    return stage.results(run)


def _gather(stages: Sequence[RemoteStage], run: StepRun, activations: bytes) -> bytes:
    """The one leg of the mesh lane: the results of all stages."""
    for stage in stages:
        stage.results(run)
    return activations
