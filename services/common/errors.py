"""The one error type of the services, and how it travels over gRPC.

A HearthError crosses the wire as google.rpc.Status with one ErrorInfo of domain "hearth": `reason`
for programs, the message for people, `metadata` for the numbers. This file knows no service.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from hearth.common.logging import printable

DOMAIN = "hearth"
# Trailers share gRPC's default metadata limit of 8 KiB: a message for people stays well below it.
_MESSAGE_LIMIT = 2000
_VALUE_LIMIT = 300


class Reason(StrEnum):
    """Every reason that Hearth gives. Names are part of the contract: add, never rename."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    NO_CHAT_TEMPLATE = "NO_CHAT_TEMPLATE"
    MODEL_ERROR = "MODEL_ERROR"
    QUEUE_FULL = "QUEUE_FULL"
    CLUSTER_NOT_READY = "CLUSTER_NOT_READY"
    WORKER_BUSY = "WORKER_BUSY"
    WORKER_LOST = "WORKER_LOST"
    PEER_LOST = "PEER_LOST"
    WORKER_UNREACHABLE = "WORKER_UNREACHABLE"
    UNREACHABLE = "UNREACHABLE"
    PROTOCOL_VERSION = "PROTOCOL_VERSION"
    STALE_EPOCH = "STALE_EPOCH"
    STREAM_IN_USE = "STREAM_IN_USE"
    NOT_LOADED = "NOT_LOADED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    BAD_CHUNK = "BAD_CHUNK"
    BAD_SHARD = "BAD_SHARD"
    BAD_STEP = "BAD_STEP"
    PORT_IN_USE = "PORT_IN_USE"
    BAD_ADDRESS = "BAD_ADDRESS"
    BAD_SETTING = "BAD_SETTING"
    INSECURE = "INSECURE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    INTERNAL = "INTERNAL"


# The gRPC code of each reason.
_C = grpc.StatusCode
CODES: Mapping[str, grpc.StatusCode] = {
    Reason.INVALID_ARGUMENT: _C.INVALID_ARGUMENT,
    Reason.PROMPT_TOO_LONG: _C.INVALID_ARGUMENT,
    Reason.NO_CHAT_TEMPLATE: _C.FAILED_PRECONDITION,
    Reason.MODEL_ERROR: _C.FAILED_PRECONDITION,
    Reason.QUEUE_FULL: _C.RESOURCE_EXHAUSTED,
    Reason.CLUSTER_NOT_READY: _C.UNAVAILABLE,
    Reason.WORKER_BUSY: _C.FAILED_PRECONDITION,
    Reason.WORKER_LOST: _C.UNAVAILABLE,
    Reason.PEER_LOST: _C.UNAVAILABLE,
    Reason.WORKER_UNREACHABLE: _C.UNAVAILABLE,
    Reason.UNREACHABLE: _C.UNAVAILABLE,
    Reason.PROTOCOL_VERSION: _C.FAILED_PRECONDITION,
    Reason.STALE_EPOCH: _C.FAILED_PRECONDITION,
    Reason.STREAM_IN_USE: _C.FAILED_PRECONDITION,
    Reason.NOT_LOADED: _C.FAILED_PRECONDITION,
    Reason.OUT_OF_MEMORY: _C.RESOURCE_EXHAUSTED,
    Reason.BAD_CHUNK: _C.DATA_LOSS,
    Reason.BAD_SHARD: _C.INVALID_ARGUMENT,
    Reason.BAD_STEP: _C.INVALID_ARGUMENT,
    Reason.PORT_IN_USE: _C.ALREADY_EXISTS,
    Reason.BAD_ADDRESS: _C.INVALID_ARGUMENT,
    Reason.BAD_SETTING: _C.INVALID_ARGUMENT,
    Reason.INSECURE: _C.FAILED_PRECONDITION,
    Reason.UNAUTHENTICATED: _C.UNAUTHENTICATED,
    Reason.DEADLINE: _C.DEADLINE_EXCEEDED,
    Reason.CANCELLED: _C.CANCELLED,
    Reason.SHUTTING_DOWN: _C.UNAVAILABLE,
    Reason.INTERNAL: _C.INTERNAL,
}
# A status that carries no ErrorInfo of ours (made by gRPC itself, or by a stranger).
_FOREIGN: Mapping[grpc.StatusCode, Reason] = {
    _C.UNAVAILABLE: Reason.UNREACHABLE,
    _C.DEADLINE_EXCEEDED: Reason.DEADLINE,
    _C.CANCELLED: Reason.CANCELLED,
    _C.INVALID_ARGUMENT: Reason.INVALID_ARGUMENT,
    _C.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
}
# What gRPC says where one end speaks TLS and the other does not, or does not trust it.
_TLS_SIGNS = ("handshake", "socket closed")


class HearthError(Exception):
    """What failed, the numbers on both sides, and what to do, in one sentence or two.

    `reason` is UPPER_SNAKE, for programs; `code` the gRPC code that belongs to it unless given;
    `metadata` the facts of the message as text, by lowerCamel key.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, object] | None = None,
        code: grpc.StatusCode | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = str(reason)
        self.message = message
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.code = code or CODES.get(reason, _C.UNKNOWN)

    def to_status(self) -> grpc.Status:
        """The status to give to `context.abort_with_status`."""
        detail = any_pb2.Any()
        detail.Pack(
            error_details_pb2.ErrorInfo(
                reason=self.reason,
                domain=DOMAIN,
                metadata={key: value[:_VALUE_LIMIT] for key, value in self.metadata.items()},
            )
        )
        status: grpc.Status = rpc_status.to_status(
            status_pb2.Status(
                code=code_pb2.Code.Value(self.code.name),
                message=self.message[:_MESSAGE_LIMIT],
                details=[detail],
            )
        )
        return status


def abort(context: grpc.ServicerContext, error: HearthError) -> NoReturn:
    """Ends the call with `error` in its trailers. Only from the handler's own thread."""
    context.abort_with_status(error.to_status())
    raise AssertionError("abort_with_status returned")


def from_rpc_error(error: grpc.RpcError, peer: str = "") -> HearthError:
    """The HearthError that a failed call stands for, naming `peer` ("worker nas:7717").

    A status without our ErrorInfo gets the reason that its code implies: UNAVAILABLE, UNREACHABLE.
    """
    call: Any = error  # what gRPC raises is an RpcError and a Call at once; its types do not say so
    code: grpc.StatusCode = call.code() if hasattr(call, "code") else _C.UNKNOWN
    message = (call.details() if hasattr(call, "details") else str(error)) or code.name
    # gRPC's own message quotes the bytes of whatever answered at the address.
    message = printable(message[:_MESSAGE_LIMIT])
    reason: str = _FOREIGN.get(code, Reason.INTERNAL)
    metadata: dict[str, str] = {}
    info = _error_info(error)
    if info is not None:
        reason = info.reason
        metadata = dict(info.metadata)
    elif code is _C.UNAVAILABLE:
        tls = any(sign in message.lower() for sign in _TLS_SIGNS)
        more = ", and that both ends have --tls of the same cluster" if tls else ""
        message = (
            f"cannot be reached ({message}); check that it runs and that the address is right{more}"
        )
    if peer:
        metadata.setdefault("peer", peer)
        message = f"{peer}: {message}"
    return HearthError(reason, message, metadata, code)


def _error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    """Our ErrorInfo in the trailers, or None: a stranger's trailers may be anything."""
    try:
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
    except Exception:
        return None
    return None
