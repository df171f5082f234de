"""Exceptions of the client, one class for each way in which a caller may react.

A root's errors carry google.rpc.ErrorInfo of domain "hearth"; its reason chooses the class.
"""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import grpc
from google.rpc import error_details_pb2, status_pb2

from hearth.client.causes import short_cause

_DOMAIN = "hearth"
_STATUS_TRAILER = "grpc-status-details-bin"
# gRPC writes [fe80::1%eth0]:7717 as ipv6:%5Bfe80::1%25eth0%5D:7717.
_QUOTED = re.compile(r"ipv6:(%5B[0-9A-Za-z:.%]{1,80}%5D)")


class HearthError(Exception):
    """A failed call. The message is for people, `reason` and `metadata` are for programs."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: dict[str, str] | None = None,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = metadata or {}
        self.code = code


class InvalidArgument(HearthError):  # noqa: N818  (these names read as what happened)
    """Invalid request: a value out of range, a prompt longer than the context."""


class NoChatTemplate(HearthError):  # noqa: N818
    """Messages for a model without a chat template; send a prompt instead."""


class Unauthenticated(HearthError):  # noqa: N818
    """Unknown or missing API key."""


class PermissionDenied(HearthError):  # noqa: N818
    """A call that needs another role: draining workers is for operators."""


class Insecure(HearthError):  # noqa: N818
    """An API key that would travel in plaintext to another machine."""


class QueueFull(HearthError):  # noqa: N818
    """Full queue on the root; try again later."""


class ClusterUnavailable(HearthError):  # noqa: N818
    """A root whose cluster is not ready."""


class WorkerLost(ClusterUnavailable):
    """A worker lost while it computed this request; `metadata` names it."""


class ShuttingDown(ClusterUnavailable):
    """The root is shutting down."""


class Unreachable(HearthError):  # noqa: N818
    """No answer from the address, or a broken connection."""


class DeadlineExceeded(HearthError):  # noqa: N818
    """Timeout of the call; its work on the cluster has been stopped."""


class Cancelled(HearthError):  # noqa: N818
    """Cancelled call; its work on the cluster has been stopped."""


_BY_REASON: dict[str, type[HearthError]] = {
    "NO_CHAT_TEMPLATE": NoChatTemplate,
    "QUEUE_FULL": QueueFull,
    "WORKER_LOST": WorkerLost,
    "WORKER_UNFIT": WorkerLost,
    "SHUTTING_DOWN": ShuttingDown,
}
_BY_CODE: dict[grpc.StatusCode, type[HearthError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: ClusterUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def from_rpc_error(error: grpc.RpcError, address: str) -> HearthError:
    """The typed error that a failed call to the root at `address` stands for."""
    call: Any = error  # an RpcError of a call has the call's status, which its type lacks
    code: grpc.StatusCode = call.code()
    # On one line: gRPC quotes the bytes that the peer sent, control characters included.
    told = _QUOTED.sub(lambda match: unquote(match.group(1)), call.details() or code.name)
    details = "".join(c if c.isprintable() else " " for c in told)
    info = _error_info(call.trailing_metadata() or ())
    if info is not None:
        kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, HearthError)
        return kind(details, reason=info.reason, metadata=dict(info.metadata), code=code)
    # An error of gRPC itself: the call never reached a root, or its answer was lost.
    if code is grpc.StatusCode.UNAVAILABLE:
        # gRPC's words when only one end uses TLS, or does not trust the other's certificate.
        tls = any(sign in details.lower() for sign in ("handshake", "socket closed"))
        more = "; use TLS on both ends or on neither (--tls, in Python tls=)" if tls else ""
        return Unreachable(
            f"cannot reach a root at {address} ({short_cause(details)}); check that `hearth root` "
            f"runs there and that the address is right{more}",
            reason="UNREACHABLE",
            code=code,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"the root at {address} did not finish before the call's timeout"
    if code is grpc.StatusCode.CANCELLED:
        return cancelled()
    return _BY_CODE.get(code, HearthError)(details, reason=code.name, code=code)


def cancelled() -> Cancelled:
    """Error for a call that this client cancelled."""
    return Cancelled("the call was cancelled", reason="CANCELLED", code=grpc.StatusCode.CANCELLED)


def _error_info(
    trailers: Iterable[tuple[str, str | bytes]],
) -> error_details_pb2.ErrorInfo | None:
    """Hearth's ErrorInfo in the trailers; None where there is none that can be read."""
    for key, value in trailers:
        if key != _STATUS_TRAILER or not isinstance(value, bytes):
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == _DOMAIN:
                    return info
        except Exception:
            return None
    return None
