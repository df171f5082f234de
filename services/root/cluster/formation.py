"""One epoch of a cluster: its shard, links and lane, and the steps they run."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common import wire
from hearth.common.errors import HearthError, Reason
from hearth.root.cluster import logits as parts
from hearth.root.cluster import wire as plans
from hearth.root.cluster.archive import PlanPages
from hearth.root.cluster.finite import LOGITS, sources
from hearth.root.cluster.lanes import HubLane
from hearth.root.cluster.links import WorkerLink, expect_result, violation
from hearth.root.cluster.reports import Reports
from hearth.root.engine.interfaces import NO_LIMITS, Allowed
from hearth.root.planning.plan import NodePlan, Plan
from hearth.root.scheduling.batch import Batch, StepOutput
from hearth.v1 import common_pb2, worker_pb2
from hearth.worker.shard import NodeShard, page_tables

_NO_POSITIONS = np.empty(0, np.uint32)


class Formation:
    """A formed cluster, until it ends; `fail` may be called by any thread."""

    def __init__(
        self,
        plan: Plan,
        shard: NodeShard,
        links: Sequence[WorkerLink],
        lane: HubLane | _native.MeshLane | None,
        sync_type: str,
        reports: Reports,
    ) -> None:
        """links: the workers in rank order; lane: None if the root is alone."""
        self.links = tuple(links)
        self.reports = reports
        self._plan = plan
        self._shard = shard
        self._lane = lane
        self._sync_type = sync_type
        self._step_id = 0
        # Of the root's own shard.
        self.tables = page_tables(shard.config)
        # Its KV pages on disk, if any are kept there.
        self.pages: PlanPages | None = None
        self._worked_seconds = 0.0
        # Address of the worker that caused the failure.
        self._culprit = ""

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
        candidates: int,
        hidden: bool = False,
        allowed: Allowed = NO_LIMITS,
    ) -> StepOutput:
        """One forward pass on all nodes. Raises HearthError, or LaneError of the mesh.

        hidden: return the final hidden states too. After the last sync every rank of the last stage
        has them whole, the root among them.
        """
        start = time.perf_counter()
        links, lane = self.links, self._lane
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
        sent = received = 0
        leaving = []
        self._step_id += 1
        if lane is not None:
            kind = plans.activation_type(self._sync_type)
            data = wire.encode(x, kind)
            if kind != common_pb2.SYNC_TYPE_F32:
                x = wire.decode(data, kind, *x.shape)
            request = plans.step(self._step_id, batch, data, kind, candidates, allowed)
            for link in links:
                link.send(request)
            lane.begin(self._step_id)
            sent = len(data) * len(links)
        slots = [self.tables.slot(s.seq_id) for s in batch.sequences]
        for s, slot in zip(batch.sequences, slots, strict=True):
            if s.restore is not None:
                self._shard.restore(s.restore, slot, s.position)
        own = self._shard.step(x, sequences, batch.output_rows, lane, slots)
        for s, slot in zip(batch.sequences, slots, strict=True):
            if s.save is not None:
                self._shard.save(slot, s.save, s.position + len(s.tokens))
        slowest = own.compute_ns
        nodes = [(own.compute_ns / 1e9, own.sync_ns / 1e9)]
        logits, ids = own.logits, None
        states = self._shard.final_norm(own.activations) if hidden else None
        # By rank: rows that are not finite, and the sync at which that was seen first.
        seen = [dict(own.not_finite)]
        if links:
            vocabs = [node.vocab for node in self._plan.nodes]
            joined = parts.JoinedLogits(len(batch.output_rows), vocabs, candidates)
            joined.add(parts.own_logits(logits, candidates, allowed))
            logits, ids = joined.values, joined.ids
            del own  # its logits are in `joined`
            for link, node in zip(links, self._plan.nodes[1:], strict=True):
                rest, size, rows = self._collect(link, node, joined, candidates, batch, allowed)
                seen.append(rows)
                slowest = max(slowest, rest.timing.compute_ns)
                nodes.append((rest.timing.compute_ns / 1e9, rest.timing.sync_ns / 1e9))
                received += size
                if rest.leaving and not link.leaving:
                    link.leaving = True
                    leaving.append(link.address)
        if lane is not None:
            sent += lane.sent_bytes
            received += lane.received_bytes
        wall = time.perf_counter() - start
        compute = min(slowest / 1e9, wall)
        addresses = ["", *(link.address for link in links)]
        not_finite = {row: addresses[rank or 0] for row, rank in sources(seen).items()}
        return StepOutput(
            logits,
            ids,
            wall,
            compute,
            tuple(nodes),
            sent,
            received,
            tuple(leaving),
            not_finite,
            states,
        )

    def release_pages(self, first: int) -> None:
        """Gives the memory of KV pages from `first` on back, on all nodes; they hold nothing."""
        release = worker_pb2.PageRelease(first_page=first)
        for link in self.links:
            link.send(worker_pb2.ForwardRequest(page_release=release))
        self.tables.release(first)
        self._shard.release_pages(first)

    def _collect(
        self,
        link: WorkerLink,
        node: NodePlan,
        joined: parts.JoinedLogits,
        candidates: int,
        batch: Batch,
        allowed: Allowed,
    ) -> tuple[worker_pb2.StepResult, int, dict[int, int]]:
        """Adds a worker's logits.

        Returns the rest of its result, the logits' size in bytes, and the rows that are not finite.
        """
        result = expect_result(link.receive(), link, self._step_id)
        if len(result.not_finite) > batch.rows:
            problem = f"{len(result.not_finite)} rows that are not finite, of {batch.rows}"
            raise violation(link, problem)
        part = parts.logits(result, link, len(batch.output_rows), node.vocab, candidates, allowed)
        # Checked here too: a worker with bad memory may not notice.
        rows = {batch.output_rows[i]: LOGITS for i in _native.not_finite_rows(part[0])}
        rows |= {item.row: item.sync for item in result.not_finite}
        size = joined.add(part)
        rest = worker_pb2.StepResult(timing=result.timing, leaving=result.leaving)
        return rest, size, rows

    def worked(self, seconds: float, enough: float) -> bool:
        """Count the time of a step with logits; True once, when all are `enough`."""
        before, self._worked_seconds = self._worked_seconds, self._worked_seconds + seconds
        return before < enough <= self._worked_seconds

    def fail(self, error: HearthError) -> None:
        """Ends every stream with `error`, and the running step."""
        if isinstance(self._lane, _native.MeshLane):
            self._lane.abort()
        # The root reaches the workers of these: their leases are released.
        reached = error.reason in (Reason.PEER_LOST, Reason.WORKER_UNFIT)
        self._culprit = "" if reached else error.metadata.get("worker", "")
        for link in self.links:
            if link.address != self._culprit:
                link.fail(error)

    def release(self, lease: worker_pb2.Lease) -> None:
        """Closes the connections and releases the leases; no step may be running."""
        # Closed here because the error of a failed step holds its frames, and these the lane, until
        # it is collected.
        if isinstance(self._lane, _native.MeshLane):
            self._lane.close()
        self._lane = None
        close_all(self.links, lease, self._culprit)


def close_all(links: Sequence[WorkerLink], lease: worker_pb2.Lease, lost: str = "") -> None:
    """Closes links in parallel and releases their leases, except that of the worker at `lost`."""
    if links:
        with ThreadPoolExecutor(len(links), "release") as pool:
            for link in links:
                pool.submit(link.close, None if link.address == lost else lease)
