"""The root's end of one worker: its channel, its weight stream, its Forward stream.

Every failure becomes a HearthError that names the worker. Independent of batches, and of the plan
except for the worker's placement.
"""

import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from hearth.common.channels import MAX_NAME_BYTES, PROTOCOL_VERSION, dial
from hearth.common.errors import Code, HearthError, Reason
from hearth.common.frames import decode_forward_response, encode_forward
from hearth.common.live_calls import LiveCalls
from hearth.common.rpc_errors import CHECK, from_rpc_error
from hearth.common.security import Security
from hearth.common.speeds import Speeds, speeds_of
from hearth.common.types import MESH_CIPHER, name_of
from hearth.root.cluster.certificate import WorkerCertificate
from hearth.root.cluster.streaming import (
    STALL_SECONDS,
    Bytes,
    LoadEvent,
    SliceReader,
    stream_weights,
)
from hearth.root.planning.plan import ALONE, Placement
from hearth.v1 import worker_pb2, worker_pb2_grpc

DESCRIBE_SECONDS = 5.0
OPEN_SECONDS = 10.0
RELEASE_SECONDS = 2.0
# A worker that has no kept speeds measures for about a second.
MEASURE_SECONDS = 40.0
# Forward streams to workers whose certificate may be revoked.
_LIVE = LiveCalls()
_FORWARD = "/hearth.v1.WorkerService/Forward"
# Reasons of a broken stream that mean only that the worker is lost.
_GONE = {Reason.UNREACHABLE, Reason.CANCELLED, Reason.INTERNAL, Reason.DEADLINE}


class WorkerLink:
    """A worker at host:port. `receive` and `send` are for one thread; `fail` is for any."""

    def __init__(
        self, address: str, security: Security | None = None, place: Placement = ALONE
    ) -> None:
        """place: the worker's placement. Raises HearthError BAD_ADDRESS. Connects when used."""
        self.address = address
        self.place = place
        self.name = address
        # host:port to which other ranks connect; set by `describe`.
        self.mesh_address = ""
        # Names of the ciphers that the worker can encrypt a mesh with; set by `describe`.
        self.mesh_ciphers: list[str] = []
        # True if the worker keeps KV pages on disk; set by `describe`.
        self.stores_pages = False
        # True while a thread is in `receive`.
        self.waiting = False
        # True once the worker has reported that it is shutting down.
        self.leaving = False
        self._security = security
        self._certificate = WorkerCertificate(address, security) if security is not None else None
        self._channel = dial(address, security)
        self._stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        self._forward = self._channel.stream_stream(
            _FORWARD, request_serializer=encode_forward, response_deserializer=_read
        )
        self._outgoing: queue.SimpleQueue[worker_pb2.ForwardRequest | None] = queue.SimpleQueue()
        self._call: Any = None  # grpc's type of a stream-stream call is private
        self._failure: HearthError | None = None
        # The reason why the stream ended, unless `fail` ended it.
        self.ended: HearthError | None = None
        self._failing = threading.Lock()
        # Ends the weight stream; set while one is open.
        self._end_load: Callable[[], object] = lambda: None
        self._closed = False

    def describe(self, root_id: str = "") -> worker_pb2.DescribeResponse:
        """Facts about the worker. root_id: the caller's, to find out if it holds the lease.

        Raises HearthError WORKER_UNREACHABLE or PROTOCOL_VERSION; CANCELLED if the link is closed.
        """
        self._check_certificate()
        request = worker_pb2.DescribeRequest(protocol_version=PROTOCOL_VERSION, root_id=root_id)
        try:
            with self._unless_closed():
                answer = self._stub.Describe(request, timeout=DESCRIBE_SECONDS)
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                problem = f"{self.address} is not a Hearth worker: another program answers there"
                raise self._named(HearthError(Reason.BAD_ADDRESS, problem)) from None
            if failure.reason in _GONE:
                cause = failure.message
                if failure.reason != Reason.UNREACHABLE:  # whose message begins like this
                    cause = f"cannot be reached ({cause})"
                cause = cause.partition(CHECK)[0]
                problem = (
                    f"worker {self.address} {cause}: is `hearth worker` running there, listening "
                    "on 0.0.0.0 and with its port open?"
                )
                raise self._named(HearthError(Reason.WORKER_UNREACHABLE, problem)) from None
            raise self._named(from_rpc_error(error, f"worker {self.address}")) from None
        problem = _unfit_names(answer)
        if problem:
            problem = f"worker {self.address} cannot be used: {problem}"
            raise self._named(HearthError(Reason.INVALID_ARGUMENT, problem))
        if answer.node.protocol_version != PROTOCOL_VERSION:
            problem = (
                f"worker {self.address} speaks version {answer.node.protocol_version} of the "
                f"protocol (Hearth {answer.node.version}), this root version {PROTOCOL_VERSION}: "
                "install the same Hearth on both"
            )
            raise self._named(HearthError(Reason.PROTOCOL_VERSION, problem))
        self.name = f"{answer.node.name} ({self.address})"
        host = self.address.rpartition(":")[0]
        self.mesh_address = f"{host}:{answer.mesh_port}" if answer.mesh_port else ""
        self.stores_pages = answer.stores_pages
        self.mesh_ciphers = [
            name for number in answer.mesh_ciphers if (name := name_of(MESH_CIPHER, number))
        ]
        return answer

    def measure_speeds(self) -> Speeds | None:
        """The worker's measured speeds; None where it has none or they cannot be.

        Raises HearthError.
        """
        request = worker_pb2.MeasureRequest(protocol_version=PROTOCOL_VERSION, speeds=True)
        return speeds_of(self._measure(request).speeds)

    def measure_seconds(self, sent_bytes: int, received_bytes: int) -> float:
        """Seconds of a call with payloads of these sizes. Raises HearthError."""
        request = worker_pb2.MeasureRequest(
            protocol_version=PROTOCOL_VERSION,
            payload=bytes(sent_bytes),
            payload_bytes=received_bytes,
        )
        started = time.perf_counter()
        self._measure(request)
        return time.perf_counter() - started

    def _measure(self, request: worker_pb2.MeasureRequest) -> worker_pb2.MeasureResponse:
        try:
            with self._unless_closed():
                return self._stub.Measure(request, timeout=MEASURE_SECONDS)
        except grpc.RpcError as error:
            raise self._named(from_rpc_error(error, f"worker {self.address}")) from None

    def _check_certificate(self) -> None:
        """Dials again, with this worker's certificate as the only one, if some are revoked."""
        if self._certificate is None:
            return
        try:
            only = self._certificate.only()
        except HearthError as error:
            problem = f"worker {self.address}: {error.message}"
            raise self._named(HearthError(error.reason, problem)) from None
        if only is not None:
            unchecked, self._channel = self._channel, dial(self.address, self._security, only)
            self._stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
            unchecked.close()
            if self._closed:
                self._channel.close()  # `close` came meanwhile

    def load(
        self,
        begin: worker_pb2.LoadBegin,
        read_slice: SliceReader,
        on_progress: Callable[[LoadEvent], None],
        stall_seconds: float = STALL_SECONDS,
    ) -> worker_pb2.LoadDone:
        """Streams the missing slices; afterwards the shard is ready.

        Raises HearthError, and the errors of `read_slice` as they are.
        """
        unreadable: list[Exception] = []

        def read(index: int, first: int, last: int) -> Bytes:
            try:
                return read_slice(index, first, last)
            except Exception as error:
                unreadable.append(error)
                raise

        try:
            with self._unless_closed():
                return stream_weights(
                    self._channel,
                    begin,
                    read,
                    on_progress,
                    worker=self.name,
                    stall_seconds=stall_seconds,
                    on_start=self._load_began,
                )
        except HearthError as error:
            if unreadable:
                raise unreadable[0] from None  # the root's files, not this worker
            raise (self._failure or self._told(error)).copy(worker=self.address) from None

    def _load_began(self, end: Callable[[], object]) -> None:
        self._end_load = end
        if self._failure is not None:
            end()  # `fail` came before there was a stream

    def open(self, lease: worker_pb2.Lease, on_end: Callable[[HearthError], None]) -> None:
        """Opens the Forward stream; call it once. `on_end` is called in a gRPC thread at its end.

        Raises HearthError, which is the error of `fail` if that was called before.
        """
        with self._unless_closed():
            self._call = call = self._forward(self._requests(self._outgoing))
        if self._failure is not None:
            call.cancel()  # `fail` came before there was a stream
        self._outgoing.put(worker_pb2.ForwardRequest(open=worker_pb2.ForwardOpen(lease=lease)))
        answer = self.receive_within(OPEN_SECONDS, "open its Forward stream")
        if answer.WhichOneof("message") != "ready":
            raise violation(self, "its first message was not `ready`")
        call.add_callback(lambda: on_end(self._ended()))
        if self._certificate is not None:
            held = _LIVE.add(self._certificate.revocation, self._revoked)
            if not call.add_callback(lambda: _LIVE.remove(held)):
                _LIVE.remove(held)  # the stream has ended already

    def _revoked(self) -> None:
        problem = f"worker {self.name}: its certificate was revoked"
        self.fail(HearthError(Reason.UNAUTHENTICATED, problem))

    @staticmethod
    def _requests(
        outgoing: "queue.SimpleQueue[worker_pb2.ForwardRequest | None]",
    ) -> Iterator[worker_pb2.ForwardRequest]:
        while (request := outgoing.get()) is not None:
            yield request

    def send(self, request: worker_pb2.ForwardRequest) -> None:
        """Queues a message; if the stream has ended, `receive` raises."""
        self._outgoing.put(request)

    def receive(self) -> worker_pb2.ForwardResponse:
        """The worker's next message; blocks. Raises HearthError if the stream has ended."""
        self.waiting = True
        try:
            response: worker_pb2.ForwardResponse | DecodeError = next(self._call)
        except (StopIteration, grpc.RpcError):
            raise self._ended() from None
        self.waiting = False
        if isinstance(response, DecodeError):
            problem = f"worker {self.name} was lost: of the worker, {response}"
            self.fail(HearthError(Reason.WORKER_LOST, problem))
            raise self._ended()
        return response

    def receive_within(self, seconds: float, what: str) -> worker_pb2.ForwardResponse:
        """`receive` with a deadline; `what` completes "the worker did not ..." in the error."""
        silence = HearthError(
            Reason.WORKER_UNFIT, f"worker {self.name} did not {what} within {seconds:g} s"
        )
        watchdog = threading.Timer(seconds, self.fail, (silence,))
        watchdog.start()
        try:
            return self.receive()
        finally:
            watchdog.cancel()

    def fail(self, error: HearthError) -> None:
        """Ends both streams; a thread in `load`, `open` or `receive` raises `error`.

        Returns at once. The lease can still be released.
        """
        with self._failing:
            if self._failure is None:
                self._failure = self._named(error)
        self._end_load()
        if self._call is not None:
            self._call.cancel()

    def close(self, lease: worker_pb2.Lease | None = None, keep_seconds: int = 0) -> None:
        """Ends both streams and releases the lease, if the worker can still be reached."""
        self._closed = True
        self._outgoing.put(None)
        if self._call is not None:
            self._call.cancel()
        if lease is not None:
            self.release(lease, keep_seconds)
        self._channel.close()

    def release(self, lease: worker_pb2.Lease, keep_seconds: int = 0) -> None:
        """Releases a lease, if the worker can be reached. keep_seconds: see ReleaseRequest."""
        # ValueError: the channel is already closed.
        with suppress(grpc.RpcError, ValueError):
            request = worker_pb2.ReleaseRequest(lease=lease, keep_seconds=keep_seconds)
            self._stub.Release(request, timeout=RELEASE_SECONDS)

    @contextmanager
    def _unless_closed(self) -> Iterator[None]:
        """Raises HearthError CANCELLED where gRPC refuses a call because `close` was called."""
        try:
            yield
        except ValueError:
            if not self._closed:
                raise
            problem = f"the connection to worker {self.name} was closed"
            raise self._named(HearthError(Reason.CANCELLED, problem)) from None

    def _ended(self) -> HearthError:
        """The reason why the stream has ended."""
        with self._failing:
            if self._failure is None:
                self._failure = self.ended = self._cause()
            # A copy: what is raised gets a traceback, and would hold the frames of its call here.
            return self._failure.copy()

    def _cause(self) -> HearthError:
        failure = from_rpc_error(self._call)
        if self._call.code() is grpc.StatusCode.OK:
            failure = HearthError(Reason.WORKER_LOST, "it ended the stream")
        if failure.reason in _GONE or failure.reason == Reason.WORKER_LOST:
            cause = failure.message.partition(CHECK)[0]
            cause = re.sub(r"^cannot be reached \((.*)\)$", r"\1", cause)
            problem = f"worker {self.name} was lost: {cause}"
            return HearthError(Reason.WORKER_LOST, problem, {"worker": self.address})
        problem = f"worker {self.name}: {failure.message}"
        failure = HearthError(failure.reason, problem, failure.metadata, Code.UNAVAILABLE)
        return self._told(failure)

    def _told(self, error: HearthError) -> HearthError:
        """An error that this worker sent: about itself, and at most a rank that it lost.

        With its code UNAVAILABLE requests wait for other workers, whatever this one refused.
        """
        untrusted = {"worker", "peer", "node"}
        if error.reason != Reason.PEER_LOST:
            untrusted.add("rank")
        metadata = {k: v for k, v in error.metadata.items() if k not in untrusted}
        metadata["worker"] = self.address
        return HearthError(error.reason, error.message, metadata, error.code)

    def _named(self, error: HearthError) -> HearthError:
        """A copy of `error` that names this worker, unless it names one already.

        A copy, because `fail` may give the same error to several links.
        """
        return error.copy(worker=self.address)


def _unfit_names(answer: worker_pb2.DescribeResponse) -> str:
    """Complaint about names in an answer, or empty; they reach logs, metrics and every client.

    The holder's name is another root's: it is escaped where it is shown, so that no root can make
    others refuse the workers that it holds.
    """
    node = answer.node
    named = {
        "name": node.name,
        "version": node.version,
        "instruction set": node.instruction_set,
        "architecture": node.architecture,
        "instance": answer.instance,
        "holder's name": answer.held_by,
    }
    for what, text in named.items():
        size = len(text.encode())
        if size > MAX_NAME_BYTES:
            return f"its {what} has {size} bytes, and at most {MAX_NAME_BYTES} are allowed"
        if not text.isprintable() and what != "holder's name":
            return f"its {what} has characters that are not printable: {text!a}"
    return ""


def _read(raw: bytes) -> worker_pb2.ForwardResponse | DecodeError:
    """gRPC would hide the reason of a deserializer that raises."""
    try:
        return decode_forward_response(raw)
    except DecodeError as error:
        return error


def violation(link: WorkerLink, problem: str) -> HearthError:
    """Error for a message that a worker must not send."""
    message = f"worker {link.name} violated the protocol: {problem}"
    return HearthError(Reason.WORKER_UNFIT, message, {"worker": link.address})


def expect_sync(
    response: worker_pb2.ForwardResponse, link: WorkerLink, step_id: int, index: int
) -> worker_pb2.SyncFrame:
    """Returns the next message if it is this sync; else raises HearthError WORKER_UNFIT."""
    frame = response.sync
    if response.WhichOneof("message") != "sync" or (frame.step_id, frame.index) != (step_id, index):
        raise violation(link, f"expected sync {index} of step {step_id}")
    return frame


def expect_result(
    response: worker_pb2.ForwardResponse, link: WorkerLink, step_id: int
) -> worker_pb2.StepResult:
    """Returns the next message if it is the step's result; else raises WORKER_UNFIT."""
    result = response.result
    if response.WhichOneof("message") != "result" or result.step_id != step_id:
        raise violation(link, f"expected the result of step {step_id}")
    return result
