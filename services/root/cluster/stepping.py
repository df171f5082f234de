"""One step on its way through the stages: what it asks for, and what the nodes returned."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common.candidates import Candidates
from hearth.root.cluster import logits as parts
from hearth.root.cluster.finite import LOGITS
from hearth.root.cluster.links import WorkerLink, expect_result, violation
from hearth.root.planning.plan import NodePlan
from hearth.root.scheduling.batch import Batch, StepOutput
from hearth.v1 import worker_pb2


@dataclass(slots=True, eq=False)
class StepRun:
    """A step under way. One stage at a time works on it."""

    step_id: int
    batch: Batch
    # Of each output row; see StepRunner.
    candidates: Candidates
    # Return the final hidden states too.
    hidden: bool
    # time.perf_counter() at its beginning.
    began: float = field(default_factory=time.perf_counter)
    future: Future[StepOutput] = field(default_factory=Future)
    # (compute, sync) seconds of each node so far, in the plan's order.
    nodes: list[tuple[float, float]] = field(default_factory=list)
    # The slowest rank of each stage so far, in seconds of computing, added up.
    compute: float = 0.0
    sent: int = 0
    received: int = 0
    leaving: list[str] = field(default_factory=list)
    # For each stage and rank the rows that are not finite; see finite.py.
    seen: list[list[Mapping[int, int]]] = field(default_factory=list)
    # Of the last stage.
    joined: parts.JoinedLogits | None = None
    states: npt.NDArray[np.float32] | None = None

    def begin_stage(self) -> None:
        """The results that follow are of the next stage."""
        self.seen.append([])

    def add_node(self, compute_ns: int, sync_ns: int, rows: Mapping[int, int]) -> None:
        """A rank's times, and the rows in which it saw values that are not finite."""
        self.nodes.append((compute_ns / 1e9, sync_ns / 1e9))
        self.seen[-1].append(rows)

    def end_stage(self) -> None:
        """All ranks of the stage have returned their results."""
        ranks = len(self.seen[-1])
        self.compute += max(compute for compute, _ in self.nodes[-ranks:])

    def collect(
        self, response: worker_pb2.ForwardResponse, link: WorkerLink, node: NodePlan
    ) -> worker_pb2.StepResult:
        """Adds a worker's times and logits; its result, without these.

        Raises HearthError WORKER_UNFIT.
        """
        result = expect_result(response, link, self.step_id)
        batch = self.batch
        if len(result.not_finite) > batch.rows:
            problem = f"{len(result.not_finite)} rows that are not finite, of {batch.rows}"
            raise violation(link, problem)
        rows: dict[int, int] = {}
        if self.joined is not None:
            outputs = len(batch.output_rows)
            part = parts.logits(result, link, outputs, node.vocab, self.candidates)
            # Checked here too: a worker with bad memory may not notice.
            rows = {batch.output_rows[i]: LOGITS for i in _native.not_finite_rows(part.logits)}
            self.received += self.joined.add(part)
        rows |= {item.row: item.sync for item in result.not_finite}
        self.add_node(result.timing.compute_ns, result.timing.sync_ns, rows)
        if result.leaving and not link.leaving:
            link.leaving = True
            self.leaving.append(link.address)
        result.ClearField("logits")
        result.ClearField("candidate_ids")
        result.ClearField("logit_counts")
        return result

    def output(self, not_finite: Mapping[int, str]) -> StepOutput:
        """The step's output, once the last stage is done."""
        assert self.joined is not None
        wall = time.perf_counter() - self.began
        return StepOutput(
            self.joined.values,
            self.joined.ids,
            wall,
            min(self.compute, wall),
            tuple(self.nodes),
            self.sent,
            self.received,
            tuple(self.leaving),
            not_finite,
            self.states,
            self.joined.tails,
        )
