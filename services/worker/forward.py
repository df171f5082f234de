"""Runs the steps of a loaded plan in the order in which they arrive on a Forward stream.

Independent of gRPC: reads messages with `receive`, replies with `send`, and computes in the
calling thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np

from hearth import _native
from hearth.common import wire
from hearth.common.allowed import decode
from hearth.common.candidates import OF_NUCLEUS, Candidates, Draw, find
from hearth.common.errors import HearthError, Reason
from hearth.common.mesh import Connections, connect_all, measure, stage_link
from hearth.common.mesh_handshake import KEY_BYTES
from hearth.common.mesh_listener import MeshListener
from hearth.common.mesh_place import MeshPlace, place_of
from hearth.common.metrics import WorkerMetrics, phase_of
from hearth.common.types import MESH_CIPHER, name_of
from hearth.v1 import common_pb2, worker_pb2
from hearth.worker.lanes import GrpcLane, StreamEnded
from hearth.worker.leaving import Leaving
from hearth.worker.page_files import PageFiles
from hearth.worker.page_mover import PageMover, page_context
from hearth.worker.shape import row_size
from hearth.worker.shard import NodeShard, Span

log = logging.getLogger(__name__)

# Time limit for connecting the ranks of a new plan, and then for measuring their links.
MESH_SECONDS = 10.0
MAX_DEADLINE_SECONDS = 3600.0

Send = Callable[[worker_pb2.ForwardResponse], None]
Receive = Callable[[], worker_pb2.ForwardRequest]


class ForwardLoop:
    """Runs steps until the stream ends. `begin` is the plan's LoadBegin; its shard is complete."""

    def __init__(
        self,
        shard: NodeShard,
        begin: worker_pb2.LoadBegin,
        send: Send,
        receive: Receive,
        metrics: WorkerMetrics,
        mesh: MeshListener,
        leaving: Leaving,
        root_host: str = "",
        files: PageFiles | None = None,
    ) -> None:
        """files: of `--kv-cache disk`."""
        self._shard = shard
        self._leaving = leaving
        self._send = send
        self._receive = receive
        self._metrics = metrics
        self._row_size = row_size(shard.config)
        self._last_stage = shard.config.vocab.end > shard.config.vocab.begin
        self._first_rank = begin.placement.rank == 0
        # A stage's output goes to the root.
        self._relayed = begin.lane == common_pb2.LANE_GRPC and not self._last_stage
        self._vocab_begin = shard.config.vocab.begin
        self._step_id = 0
        self._tables = shard.tables
        self._tables.end_plan()
        self._mover = PageMover(shard, self._tables, files, page_context(begin, shard.device))
        self._placement = begin.placement
        self._sync_type = begin.sync_type
        self._mesh = mesh
        self._root_host = root_host
        # True once a step, or a fetch of pages, began: they write to the KV cache.
        self.wrote = False
        # True while ranks connect.
        self._opening = False
        # Set once the stream has ended.
        self._ended = threading.Event()
        self._lane: GrpcLane | _native.MeshLane | None = None
        # On the mesh lane: where activations come from and go to, in a plan of several stages.
        self._before: _native.StageLink | None = None
        self._behind: list[_native.StageLink] = []
        place = begin.placement
        mesh_lane = begin.lane == common_pb2.LANE_MESH
        self._needs_mesh = mesh_lane and (place.ranks > 1 or place.stages > 1)
        if place.ranks > 1 and not mesh_lane:
            self._lane = GrpcLane(send, receive, begin.sync_type)

    def run(self) -> None:
        """Returns when the stream ends. Raises HearthError BAD_STEP for an invalid step."""
        try:
            while True:
                request = self._receive()
                kind = request.WhichOneof("message")
                if kind == "step" and not self._needs_mesh:
                    self.wrote = True
                    with self._leaving.step():
                        self._step(request.step)
                elif kind == "page_release":
                    self._tables.release(request.page_release.first_page)
                    self._shard.release_pages(request.page_release.first_page)
                    self._report_pages()
                elif kind == "page_store":
                    self._mover.store(request.page_store.items)
                elif kind == "page_fetch":
                    self._fetch(request.page_fetch)
                elif kind == "mesh_open" and self._needs_mesh:
                    self._open_mesh(request.mesh_open)
                else:
                    problem = f"received a message {kind!r} between two steps"
                    raise HearthError(Reason.BAD_STEP, problem)
        except StreamEnded:
            return
        finally:
            # Closed here because errors and their frames may hold the last reference for long.
            for link in self._mesh_links():
                link.close()

    def _mesh_links(self) -> list[_native.MeshLane | _native.StageLink]:
        """All connections to other nodes."""
        links: list[_native.MeshLane | _native.StageLink] = [*self._behind]
        if self._before is not None:
            links.append(self._before)
        if isinstance(self._lane, _native.MeshLane):
            links.append(self._lane)
        return links

    def _fetch(self, fetch: worker_pb2.PageFetch) -> None:
        if fetch.reset:
            self._tables.forget(True, ())
        self.wrote = True
        states = self._mover.fetch(fetch.items, fetch.wait_ms / 1e3)
        self._send(worker_pb2.ForwardResponse(pages_fetched=worker_pb2.PagesFetched(states=states)))
        self._report_pages()

    def abort(self) -> None:
        """Ends a wait for other ranks; called by any thread, after the stream's end."""
        self._ended.set()
        for link in self._mesh_links():
            link.abort()
        if self._opening:
            self._mesh.give_up()

    def _open_mesh(self, request: worker_pb2.MeshOpen) -> None:
        """Connects to the other ranks and measures the stage's links. Raises HearthError."""
        placed = self._placement
        place = place_of(
            request.stage_ranks, placed.stage, placed.stages, placed.rank, placed.ranks
        )
        nodes = sum(place.stage_ranks)
        if len(request.addresses) != nodes or len(request.session_key) != KEY_BYTES:
            problem = (
                f"a mesh of {len(request.addresses)} ranks with a key of "
                f"{len(request.session_key)} bytes, expected {nodes} and {KEY_BYTES}"
            )
            raise HearthError(Reason.INVALID_ARGUMENT, problem)
        if not 0 < request.deadline_seconds <= MAX_DEADLINE_SECONDS:
            problem = f"sync deadline {request.deadline_seconds} s is not within (0, 3600] s"
            raise HearthError(Reason.INVALID_ARGUMENT, problem)
        # These may raise: before any socket is open.
        name = wire.type_name(self._sync_type)
        cipher = self._cipher(request.cipher)
        lower = sorted(peer for peer in place.peers if peer < place.own)
        hosts = [request.addresses[peer] if peer else self._root_host for peer in lower]
        self._mesh.expect(request.session_key, place.own, hosts, lower)
        self._opening = True
        try:
            connections = connect_all(
                list(request.addresses),
                request.session_key,
                place.own,
                self._mesh.take,
                MESH_SECONDS,
                cipher,
                self._ended,
                place.peers,
            )
            self._open_links(place, connections, name, request.deadline_seconds, cipher)
            if isinstance(self._lane, _native.MeshLane):
                measure(self._lane, MESH_SECONDS)
        except HearthError as error:
            error.metadata.setdefault("stage", str(placed.stage))
            raise
        finally:
            self._opening = False
        self._needs_mesh = False
        self._send(worker_pb2.ForwardResponse(mesh_ready=worker_pb2.MeshReady()))

    def _open_links(
        self,
        place: MeshPlace,
        connections: Connections,
        wire_type: str,
        deadline: float,
        cipher: str,
    ) -> None:
        if place.before is not None:
            self._before = stage_link(connections, place.own, place.before, deadline, cipher)
        for peer in place.behind:
            self._behind.append(stage_link(connections, place.own, peer, deadline, cipher))
        if len(place.mates) > 1:
            mates = slice(place.mates.start, place.mates.stop)
            self._lane = _native.MeshLane(
                rank=place.rank,
                sockets=connections.sockets[mates],
                wire=wire_type,
                deadline_seconds=deadline,
                cipher=cipher,
                keys=connections.keys[mates],
                first_rank=place.first,
            )

    @staticmethod
    def _cipher(number: int) -> str:
        cipher = name_of(MESH_CIPHER, number)
        ours = _native.mesh_ciphers()
        if cipher is None or (cipher != "plain" and cipher not in ours):
            problem = f"mesh cipher {cipher or number}: this worker has {', '.join(ours) or 'none'}"
            raise HearthError(Reason.INVALID_ARGUMENT, problem)
        return cipher

    def _step(self, step: worker_pb2.Step) -> None:
        if step.step_id != self._step_id + 1:
            problem = f"received step {step.step_id}, expected {self._step_id + 1}"
            raise HearthError(Reason.BAD_STEP, problem)
        self._step_id = step.step_id
        self._check_sizes(step)
        wanted = self._candidates(step)
        sequences, slots = self._sequences(step)
        if self._lane is not None:
            self._lane.begin(step.step_id)
        try:
            activations = self._activations(step)
            for item, slot in zip(step.sequences, slots, strict=True):
                if item.HasField("restore"):
                    self._shard.restore(item.restore, slot, item.position)
            undo = [item.undo for item in step.sequences]
            output = self._shard.step(
                activations, sequences, step.output_rows, self._lane, slots, undo
            )
            for item, slot in zip(step.sequences, slots, strict=True):
                if item.HasField("save"):
                    self._shard.save(slot, item.save, item.position + item.rows)
            onward = self._send_on(step, output)
        except _native.LaneError as error:
            # By rank: only the root can map a rank to a worker.
            place = {"stage": self._placement.stage, "rank": error.rank}
            log.warning("step %d is lost: %s", step.step_id, error)
            raise HearthError(Reason.PEER_LOST, str(error), place) from None
        response, sent = self._response(step, output, wanted)
        wall, sync = output.wall_ns / 1e9, output.sync_ns / 1e9
        del output  # its logits are in the response
        self._send(response)
        received = wire.encoded_bytes(step.activation_type, *activations.shape)
        self._observe(step, wall, sync, sent + onward, received)

    def _send_on(self, step: worker_pb2.Step, output: _native.StepOutput) -> int:
        """Sends the stage's output to the next one over the mesh; the bytes that were sent."""
        if not self._behind:
            return 0
        data = wire.encode(output.activations, step.activation_type)
        for link in self._behind:
            link.send(step.step_id, data)
        return len(data) * len(self._behind)

    def _check_sizes(self, step: worker_pb2.Step) -> None:
        """Checks counts before lists of these sizes are made. Raises HearthError BAD_STEP."""
        config = self._shard.config
        for what, count, most in (
            ("sequences", len(step.sequences), config.max_step_tokens),
            ("output rows", len(step.output_rows), config.max_step_tokens),
        ):
            if count > most:
                raise HearthError(
                    Reason.BAD_STEP, f"a step with {count} {what}, the plan allows {most}"
                )

    def _sequences(self, step: worker_pb2.Step) -> tuple[list[Span], list[int]]:
        """Rows, position and page table of each sequence, and its slot.

        Raises HearthError BAD_STEP.
        """
        ids = {item.sequence_id for item in step.sequences}
        if len(ids) != len(step.sequences):
            problem = f"a step of {len(step.sequences)} sequences has {len(ids)} sequence ids"
            raise HearthError(Reason.BAD_STEP, problem)
        tables = self._tables
        tables.forget(step.reset, step.ended)
        spans: list[Span] = [
            (
                item.rows,
                item.position,
                tables.step(
                    item.sequence_id, item.position, item.rows, item.kept_pages, item.new_pages
                ),
            )
            for item in step.sequences
        ]
        return spans, [tables.slot(item.sequence_id) for item in step.sequences]

    def _activations(self, step: worker_pb2.Step) -> wire.F32:
        rows = sum(item.rows for item in step.sequences)
        if not 1 <= rows <= self._shard.config.max_step_tokens:
            problem = (
                f"a step of {rows} rows, the plan allows 1 to {self._shard.config.max_step_tokens}"
            )
            raise HearthError(Reason.BAD_STEP, problem)
        if self._before is None:
            return wire.decode(step.activations, step.activation_type, rows, self._row_size)
        if step.activations:
            problem = f"{len(step.activations)} bytes of activations, which come over the mesh"
            raise HearthError(Reason.BAD_STEP, problem)
        size = wire.encoded_bytes(step.activation_type, rows, self._row_size)
        data = self._before.receive(step.step_id, size).tobytes()
        return wire.decode(data, step.activation_type, rows, self._row_size)

    def _response(
        self, step: worker_pb2.Step, output: _native.StepOutput, wanted: Candidates
    ) -> tuple[worker_pb2.ForwardResponse, int]:
        """The step's result, and the size of its payload in bytes."""
        response = worker_pb2.ForwardResponse()
        result = response.result  # filled in place: logits are megabytes
        result.step_id = step.step_id
        result.leaving = self._leaving.begun
        result.timing.wall_ns = output.wall_ns
        result.timing.compute_ns = output.compute_ns
        result.timing.sync_ns = output.sync_ns
        for row, sync in output.not_finite:
            result.not_finite.add(row=row, sync=sync)
        payload = b""
        if not self._last_stage:
            if self._first_rank and self._relayed:
                payload = wire.encode(output.activations, step.activation_type)
                result.activations = payload
            return response, len(payload)
        if step.hidden and self._first_rank:
            states = self._shard.final_norm(output.activations)
            result.activations = wire.encode(states, common_pb2.SYNC_TYPE_F32)
        if not len(step.output_rows):
            return response, 0
        logits = output.logits
        sent = 0
        if wanted.count:
            logits, ids, counts = find(logits, wanted, self._vocab_begin)
            assert ids is not None
            result.candidate_ids = ids.astype("<u4").tobytes()
            result.logit_counts = b"".join(each.astype("<u4").tobytes() for each in counts.values())
            sent = ids.nbytes + len(result.logit_counts)
        result.logits = np.ascontiguousarray(logits, dtype="<f4").tobytes()
        return response, logits.nbytes + sent

    def _candidates(self, step: worker_pb2.Step) -> Candidates:
        """Candidates of a step's output rows. Raises HearthError BAD_STEP."""
        config = self._shard.config
        try:
            found = {
                item.row: decode(item.bits, max(config.vocab_size, config.vocab.end))
                for item in step.candidates.allowed[: len(step.output_rows)]
            }
        except ValueError as error:
            raise HearthError(Reason.BAD_STEP, str(error)) from None
        rows = len(step.output_rows)
        if len(step.candidates.allowed) != len(found) or any(row >= rows for row in found):
            problem = (
                f"{len(step.candidates.allowed)} rows of allowed tokens, of {rows} output rows"
            )
            raise HearthError(Reason.BAD_STEP, problem)
        draws = {
            item.row: Draw(item.temperature, item.seed, item.number, item.nucleus)
            for item in step.candidates.draws[:rows]
        }
        if len(step.candidates.draws) != len(draws) or any(row >= rows for row in draws):
            problem = f"{len(step.candidates.draws)} draws, of {rows} output rows"
            raise HearthError(Reason.BAD_STEP, problem)
        wanted = Candidates(step.candidates.count, found, draws)
        for draw in draws.values():
            if not 0 < draw.temperature <= 100:
                problem = f"a draw with a temperature of {draw.temperature}, not in (0, 100]"
                raise HearthError(Reason.BAD_STEP, problem)
            if draw.nucleus and wanted.count < OF_NUCLEUS:
                problem = f"{wanted.count} candidates of a nucleus, which needs {OF_NUCLEUS}"
                raise HearthError(Reason.BAD_STEP, problem)
        return wanted

    def _observe(
        self, step: worker_pb2.Step, wall: float, sync: float, sent: int, received: int
    ) -> None:
        rows = sum(item.rows for item in step.sequences)
        self._metrics.step(phase_of(rows, len(step.output_rows)), wall, sync)
        if self._lane is not None:
            sent += self._lane.sent_bytes
            received += self._lane.received_bytes
        self._metrics.traffic(sent, received)
        self._report_pages()

    def _report_pages(self) -> None:
        used = self._shard.kv_pages
        self._metrics.kv_pages(used, self._shard.config.max_pages - used)
