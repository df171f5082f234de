"""The gRPC face of a worker: checks who calls, and hands over to what does the work."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from hearth import _native
from hearth.common.channels import PROTOCOL_VERSION
from hearth.common.errors import HearthError, Reason
from hearth.common.frames import ChunkFrame, decode_forward, decode_request, encode_forward
from hearth.common.mesh_listener import MeshListener
from hearth.common.metrics import WorkerMetrics
from hearth.common.rpc_errors import abort
from hearth.common.speeds import Speeds, speeds_message
from hearth.common.types import MESH_CIPHER
from hearth.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from hearth.worker.forward import ForwardLoop
from hearth.worker.leaving import Leaving
from hearth.worker.load_log import LoadLog
from hearth.worker.loading import LoadSession
from hearth.worker.page_files import PageFiles
from hearth.worker.streams import Exchange
from hearth.worker.tenancy import Tenancy, lease_id

log = logging.getLogger(__name__)

# Streams at once, refused ones included: the server's other threads are for control calls.
MAX_STREAMS = 12
# Of a response that times a link.
MAX_MEASURE_BYTES = 1 << 20
# How long Describe waits for the streams of a plan that has ended.
_ENDING_SECONDS = 1.0

LoadRequest = worker_pb2.LoadWeightsRequest | ChunkFrame
LoadStream = Exchange[LoadRequest, worker_pb2.LoadWeightsResponse]
ForwardStream = Exchange[worker_pb2.ForwardRequest, worker_pb2.ForwardResponse]


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """`describe` gives the node's facts now, `make_session` a plan's session (see server.py).

    `files`: of `--kv-cache disk`. A stream whose first message does not come within
    `silence_seconds` ends: it holds a thread. `speeds` gives the measured speeds;
    its argument allows to measure.
    """

    def __init__(
        self,
        tenancy: Tenancy,
        describe: Callable[[], common_pb2.NodeInfo],
        make_session: Callable[[worker_pb2.LoadBegin], LoadSession],
        metrics: WorkerMetrics,
        mesh: MeshListener,
        leaving: Leaving,
        instance: str,
        silence_seconds: float,
        files: PageFiles | None = None,
        speeds: Callable[[bool], Speeds | None] = lambda may_measure: None,
    ) -> None:
        self._speeds = speeds
        self._silence_seconds = silence_seconds
        self._files = files
        self._mesh = mesh
        self._leaving = leaving
        self._tenancy = tenancy
        self._describe = describe
        self._make_session = make_session
        self._metrics = metrics
        self._slots = threading.BoundedSemaphore(MAX_STREAMS)
        self._instance = instance

    def Describe(  # noqa: N802 (the contract's name)
        self, request: worker_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> worker_pb2.DescribeResponse:
        """See worker.proto."""
        try:
            _check_protocol(request.protocol_version)
            self._tenancy.refuse_closed()
        except HearthError as error:
            abort(context, error)
        ending = self._tenancy.ending(_ENDING_SECONDS)
        name, epoch = self._tenancy.held_by()
        return worker_pb2.DescribeResponse(
            node=self._describe(),
            held_by=name,
            held_by_caller=self._tenancy.held_by_root(request.root_id),
            epoch=epoch,
            mesh_port=self._mesh.port,
            instance=self._instance,
            mesh_ciphers=[MESH_CIPHER[name] for name in _native.mesh_ciphers()],
            ending=ending,
            stores_pages=self._files is not None,
        )

    def LoadWeights(  # noqa: N802
        self,
        request_iterator: Iterator[worker_pb2.LoadWeightsRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[worker_pb2.LoadWeightsResponse]:
        """See worker.proto."""
        with self._slot(context):
            exchange: LoadStream = Exchange(request_iterator, context)
            yield from exchange.run(self._load, self._silence_seconds)

    def Forward(  # noqa: N802
        self, request_iterator: Iterator[worker_pb2.ForwardRequest], context: grpc.ServicerContext
    ) -> Iterator[worker_pb2.ForwardResponse]:
        """See worker.proto."""
        with self._slot(context):
            exchange: ForwardStream = Exchange(request_iterator, context)
            yield from exchange.run(self._forward, self._silence_seconds)

    def Release(  # noqa: N802
        self, request: worker_pb2.ReleaseRequest, context: grpc.ServicerContext
    ) -> worker_pb2.ReleaseResponse:
        """See worker.proto."""
        try:
            self._tenancy.release(lease_id(request.lease), request.keep_seconds)
        except HearthError as error:
            abort(context, error)
        return worker_pb2.ReleaseResponse()

    def Measure(  # noqa: N802
        self, request: worker_pb2.MeasureRequest, context: grpc.ServicerContext
    ) -> worker_pb2.MeasureResponse:
        """See worker.proto."""
        try:
            _check_protocol(request.protocol_version)
            self._tenancy.refuse_closed()
            if request.payload_bytes > MAX_MEASURE_BYTES:
                problem = (
                    f"payload_bytes is {request.payload_bytes}; at most {MAX_MEASURE_BYTES} are "
                    "allowed"
                )
                raise HearthError(Reason.INVALID_ARGUMENT, problem)
            response = worker_pb2.MeasureResponse(payload=bytes(request.payload_bytes))
            if request.speeds:
                response.speeds.CopyFrom(self._measured())
        except HearthError as error:
            abort(context, error)
        return response

    def _measured(self) -> common_pb2.NodeSpeeds:
        speeds = self._speeds(False)
        if speeds is None:
            holder, _ = self._tenancy.held_by()
            if holder:
                problem = f"root {holder!r} holds this worker, so its speed cannot be measured now"
                raise HearthError(Reason.WORKER_BUSY, problem)
            speeds = self._speeds(True)
        return speeds_message(speeds) if speeds is not None else common_pb2.NodeSpeeds()

    def _load(self, stream: LoadStream) -> None:
        first = stream.receive()
        if isinstance(first, ChunkFrame) or first.WhichOneof("message") != "begin":
            raise HearthError(Reason.INVALID_ARGUMENT, "the first message must be begin")
        begin = first.begin
        _check_protocol(begin.protocol_version)
        _check_plan(begin)
        with self._tenancy.loading(begin, self._make_session, stream.end) as session:
            name = begin.lease.root_name or begin.lease.root_id
            lines = LoadLog(name, begin.lease.epoch, session.weight_bytes)
            held = 0
            for progress in session.read_cache():
                held += progress.progress.cache_bytes
                lines.progress(held)
                stream.send(progress)
            stream.send(session.needs())
            while True:
                request = stream.receive()
                if isinstance(request, ChunkFrame):
                    answer = session.accept(request)
                    held += len(request.data)
                    lines.progress(held)
                    if answer is not None:
                        stream.send(answer)
                elif request.HasField("finish"):
                    answer = session.finish()
                    lines.done(answer.done.network_bytes)
                    stream.send(answer)
                    return
                else:
                    kind = request.WhichOneof("message")
                    problem = f"a message {kind!r} came where a chunk or finish was next"
                    raise HearthError(Reason.INVALID_ARGUMENT, problem)

    def _forward(self, stream: ForwardStream) -> None:
        first = stream.receive()
        if first.WhichOneof("message") != "open":
            raise HearthError(Reason.INVALID_ARGUMENT, "the first message must be open")
        with self._tenancy.forwarding(lease_id(first.open.lease), stream.end) as session:
            stream.send(worker_pb2.ForwardResponse(ready=worker_pb2.ForwardReady()))
            loop = ForwardLoop(
                session.shard,
                session.begin,
                stream.send,
                stream.receive,
                self._metrics,
                self._mesh,
                self._leaving,
                root_host=stream.peer[0],
                files=self._files,
            )
            stream.on_close(partial(_abort, weakref.ref(loop)))
            try:
                loop.run()
            finally:
                if loop.wrote:
                    session.pages_epoch = first.open.lease.epoch

    @contextmanager
    def _slot(self, context: grpc.ServicerContext) -> Iterator[None]:
        """A place among the streams at once. Ends the call where all are taken."""
        if not self._slots.acquire(blocking=False):
            problem = f"busy: {MAX_STREAMS} streams are open on this worker already"
            abort(context, HearthError(Reason.WORKER_BUSY, problem))
        try:
            yield
        finally:
            self._slots.release()


class ChunkFrames(grpc.ServerInterceptor):
    """Lets the streams read and write as common/frames.py does: bounded, checked, few copies."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method's handler, the streams' with another deserializer."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method.rpartition("/")[2]
        decode: Any = {"LoadWeights": decode_request, "Forward": decode_forward}.get(method)
        if handler is None or decode is None:
            return handler
        stream: Any = handler.stream_stream
        forward = method == "Forward"
        return grpc.stream_stream_rpc_method_handler(
            stream,
            request_deserializer=_reader(decode),
            response_serializer=encode_forward if forward else handler.response_serializer,
        )


def _reader(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`decode` that gives its DecodeError as a message.

    gRPC handles a deserializer that raises, but never ends the call when a second message cannot
    be read either. After 32 such calls a connection takes no more.
    """

    def read(raw: bytes) -> Any:
        try:
            return decode(raw)
        except DecodeError as error:
            return error

    return read


def _abort(loop: weakref.ref[ForwardLoop]) -> None:
    """Ends the loop's step when its stream is over.

    gRPC keeps the callbacks of a call that is over; a strong reference would keep the shard.
    """
    running = loop()
    if running is not None:
        running.abort()


def _check_protocol(version: int) -> None:
    if version != PROTOCOL_VERSION:
        raise HearthError(
            Reason.PROTOCOL_VERSION,
            f"the root speaks protocol version {version}, this worker {PROTOCOL_VERSION}: "
            "run the same version of hearth on both",
            {"rootVersion": version, "workerVersion": PROTOCOL_VERSION},
        )


def _check_plan(begin: worker_pb2.LoadBegin) -> None:
    place = begin.placement
    if not (place.rank < place.ranks and place.stage < place.stages):
        problem = f"rank {place.rank} of {place.ranks}, stage {place.stage} of {place.stages}"
        raise HearthError(Reason.BAD_SHARD, f"a placement that cannot be: {problem}")
    if begin.lane not in (common_pb2.LANE_GRPC, common_pb2.LANE_MESH):
        raise HearthError(Reason.INVALID_ARGUMENT, f"this version knows no lane {begin.lane}")
