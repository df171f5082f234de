"""Mapping between HearthError and gRPC errors.

On the wire an error is a google.rpc.Status with one ErrorInfo of domain "hearth".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from hearth.common.causes import short_cause
from hearth.common.errors import Code, HearthError, Reason
from hearth.common.logging import printable

DOMAIN = "hearth"
# Trailers share gRPC's default metadata limit of 8 KiB; messages stay well below it.
_MESSAGE_LIMIT = 2000
_VALUE_LIMIT = 300

_C = grpc.StatusCode
# Reasons for a status without Hearth's ErrorInfo: from gRPC itself, or from another server.
_FOREIGN: Mapping[grpc.StatusCode, Reason] = {
    _C.UNAVAILABLE: Reason.UNREACHABLE,
    _C.DEADLINE_EXCEEDED: Reason.DEADLINE,
    _C.CANCELLED: Reason.CANCELLED,
    _C.INVALID_ARGUMENT: Reason.INVALID_ARGUMENT,
    _C.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
    _C.PERMISSION_DENIED: Reason.PERMISSION_DENIED,
}
_CODES: Mapping[grpc.StatusCode, Code] = {
    status: Code[status.name] for status in _C if status is not _C.OK
}
# What follows is advice for a first connection.
CHECK = "; check"
# gRPC writes [fe80::1%eth0]:7717 as ipv6:%5Bfe80::1%25eth0%5D:7717.
_QUOTED = re.compile(r"ipv6:(%5B[0-9A-Za-z:.%]{1,80}%5D)")
# Words in gRPC's message if only one end speaks TLS, or does not trust the other.
_TLS_SIGNS = ("handshake", "socket closed")


def to_status(error: HearthError) -> grpc.Status:
    """The status for `context.abort_with_status`."""
    detail = any_pb2.Any()
    detail.Pack(
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=DOMAIN,
            metadata={key: value[:_VALUE_LIMIT] for key, value in error.metadata.items()},
        )
    )
    status: grpc.Status = rpc_status.to_status(
        status_pb2.Status(
            code=code_pb2.Code.Value(error.code.name),
            message=error.message[:_MESSAGE_LIMIT],
            details=[detail],
        )
    )
    return status


def abort(context: grpc.ServicerContext, error: HearthError) -> NoReturn:
    """Ends the call with `error` in its trailers. Call it only in the handler's thread."""
    context.abort_with_status(to_status(error))
    raise AssertionError("abort_with_status returned")


def from_rpc_error(error: grpc.RpcError, peer: str = "") -> HearthError:
    """Converts the error of a failed call to a HearthError that names `peer` ("worker nas:7717").

    Without Hearth's ErrorInfo the status code decides the reason: UNAVAILABLE gives UNREACHABLE.
    """
    call: Any = error  # also a grpc.Call, which the type stubs do not express
    status: grpc.StatusCode = call.code() if hasattr(call, "code") else _C.UNKNOWN
    message = (call.details() if hasattr(call, "details") else str(error)) or status.name
    # gRPC's own message quotes the bytes of whatever answered at the address.
    message = _QUOTED.sub(lambda match: unquote(match.group(1)), message[:_MESSAGE_LIMIT])
    message = printable(message)
    reason: str = _FOREIGN.get(status, Reason.INTERNAL)
    metadata: dict[str, str] = {}
    info = _error_info(error)
    if info is not None:
        reason = info.reason
        metadata = dict(info.metadata)
    elif status is _C.UNAVAILABLE:
        tls = any(sign in message.lower() for sign in _TLS_SIGNS)
        more = ", and that both ends have --tls of the same cluster" if tls else ""
        message = (
            f"cannot be reached ({short_cause(message)}){CHECK} that it runs and that the address "
            f"is right{more}"
        )
    if peer:
        metadata.setdefault("peer", peer)
        message = f"{peer}: {message}"
    return HearthError(reason, message, metadata, _CODES.get(status, Code.UNKNOWN))


def _error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    """Hearth's ErrorInfo in the trailers, or None: another server's may hold anything."""
    try:
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
    except Exception:
        return None
    return None
