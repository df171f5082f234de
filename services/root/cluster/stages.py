"""The stages behind the root's own: each takes a step's activations and returns the next ones.

grpc lane: activations come to the root and go on to the next stage, and the root adds up the syncs
of a stage's ranks. mesh lane: nodes send both to each other, and the root gets results only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hearth import _native
from hearth.common import wire
from hearth.common.errors import HearthError
from hearth.common.types import SYNC
from hearth.root.cluster import logits as parts
from hearth.root.cluster import wire as plans
from hearth.root.cluster.finite import LOGITS
from hearth.root.cluster.links import WorkerLink, expect_sync, violation
from hearth.root.cluster.stepping import StepRun
from hearth.root.planning.plan import Stage
from hearth.v1 import worker_pb2


class RemoteStage:
    """A stage of workers. `send` and `results` of a step are called in the order of steps."""

    def __init__(
        self,
        stage: Stage,
        links: Sequence[WorkerLink],
        sync_type: str,
        width: int,
        hidden_size: int,
        *,
        last: bool,
        relayed: bool,
    ) -> None:
        """links: in rank order. width: elements of a row of activations, `row_size`.

        last: it makes the logits. relayed: by the grpc lane.
        """
        self._nodes = stage.ranks
        self._links = tuple(links)
        self._kind = plans.activation_type(sync_type)
        self._sync_type = SYNC[sync_type]
        self._width = width
        self._hidden_size = hidden_size
        self._last = last
        self._relayed = relayed

    def send(self, run: StepRun, activations: bytes = b"") -> None:
        """Sends a step to all ranks; activations: encoded, on the grpc lane."""
        request = plans.step(
            run.step_id,
            run.batch,
            activations,
            self._kind,
            run.candidates,
            last=self._last,
            hidden=run.hidden,
        )
        for link in self._links:
            link.send(request)
        run.sent += len(activations) * len(self._links)

    def results(self, run: StepRun) -> bytes:
        """Waits for all ranks; the stage's output on the grpc lane, encoded. Raises HearthError."""
        run.begin_stage()
        if self._last:
            vocabs = [node.vocab for node in self._nodes]
            outputs, count = len(run.batch.output_rows), run.candidates.count
            run.joined = parts.JoinedLogits(outputs, vocabs, count)
        first = self._sums(run) if self._relayed and len(self._links) > 1 else None
        output = b""
        for rank, (link, node) in enumerate(zip(self._links, self._nodes, strict=True)):
            response = link.receive() if first is None else first[rank]
            result = run.collect(response, link, node)
            if rank == 0:
                output = self._output(run, link, result.activations)
                run.received += len(output)
        run.end_stage()
        return output

    def _sums(self, run: StepRun) -> list[worker_pb2.ForwardResponse]:
        """Adds up the ranks' syncs, in rank order, until their results come; returns these."""
        index = 0
        while True:
            responses = [link.receive() for link in self._links]
            if responses[0].WhichOneof("message") != "sync":
                return responses
            frames = [
                expect_sync(response, link, run.step_id, index)
                for response, link in zip(responses, self._links, strict=True)
            ]
            kind = frames[0].sync_type or self._sync_type
            total: wire.F32 | None = None
            for frame, link in zip(frames, self._links, strict=True):
                try:
                    part = wire.decode_flat(frame.data, kind)
                    total = part.copy() if total is None else total + part
                except (HearthError, ValueError) as error:
                    raise violation(link, f"sync {index}: {error}") from None
                run.received += len(frame.data)
            assert total is not None
            data = wire.encode(total, kind)
            answer = worker_pb2.ForwardRequest(
                sync=worker_pb2.SyncFrame(step_id=run.step_id, index=index, data=data)
            )
            for link in self._links:
                link.send(answer)
            run.sent += len(data) * len(self._links)
            index += 1

    def _output(self, run: StepRun, link: WorkerLink, data: bytes) -> bytes:
        """Checks the activations of a stage's rank 0, or takes the final hidden states."""
        rows = run.batch.rows
        if self._last and run.hidden:
            run.states = self._decoded(link, data, SYNC["f32"], rows, self._hidden_size)
            return data
        if self._last or not self._relayed:
            if data:
                raise violation(link, f"{len(data)} bytes of activations that nothing reads")
            return b""
        values = self._decoded(link, data, self._kind, rows, self._width)
        # Checked here too: a worker with bad memory may not notice.
        bad = dict.fromkeys(_native.not_finite_rows(np.ascontiguousarray(values)), LOGITS)
        if bad:
            run.seen[-1][0] = {**bad, **run.seen[-1][0]}
        return data

    @staticmethod
    def _decoded(link: WorkerLink, data: bytes, kind: int, rows: int, columns: int) -> wire.F32:
        try:
            return wire.decode(data, kind, rows, columns)
        except HearthError as error:
            raise violation(link, f"activations: {error.message}") from None
