"""What can go wrong, as exceptions: one class for each thing a caller may want to do about it.

A root's errors carry google.rpc.ErrorInfo of domain "hearth"; its reason chooses the class.
"""

from collections.abc import Iterable
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

_DOMAIN = "hearth"
_STATUS_TRAILER = "grpc-status-details-bin"


class HearthError(Exception):
    """A call failed. The message is for people, `reason` and `metadata` are for programs."""

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
    """The request itself is wrong: a value out of range, a prompt longer than the context."""


class NoChatTemplate(HearthError):  # noqa: N818
    """Messages were given to a model that has no chat template; write a prompt."""


class Unauthenticated(HearthError):  # noqa: N818
    """The root does not know the API key, or wants one and got none."""


class QueueFull(HearthError):  # noqa: N818
    """The root has all the work it takes; try again later."""


class ClusterUnavailable(HearthError):  # noqa: N818
    """The root answers, but its cluster does not serve (yet, or any more)."""


class WorkerLost(ClusterUnavailable):
    """A worker was lost while it worked on this request; `metadata` names it."""


class ShuttingDown(ClusterUnavailable):
    """The root is shutting down."""


class Unreachable(HearthError):  # noqa: N818
    """Nothing answers at the address, or the connection broke."""


class DeadlineExceeded(HearthError):  # noqa: N818
    """The call's timeout passed; its work on the cluster has been stopped."""


class Cancelled(HearthError):  # noqa: N818
    """The call was cancelled; its work on the cluster has been stopped."""


_BY_REASON: dict[str, type[HearthError]] = {
    "NO_CHAT_TEMPLATE": NoChatTemplate,
    "QUEUE_FULL": QueueFull,
    "WORKER_LOST": WorkerLost,
    "SHUTTING_DOWN": ShuttingDown,
}
_BY_CODE: dict[grpc.StatusCode, type[HearthError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: ClusterUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def from_rpc_error(error: grpc.RpcError, address: str) -> HearthError:
    """The typed error that a failed call to the root at `address` stands for."""
    call: Any = error  # an RpcError of a call has the call's status; its type does not say so
    code: grpc.StatusCode = call.code()
    # On one line: gRPC quotes what a stranger sent, whatever it does to a terminal.
    details = "".join(c if c.isprintable() else " " for c in call.details() or code.name)
    info = _error_info(call.trailing_metadata() or ())
    if info is not None:
        kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, HearthError)
        return kind(details, reason=info.reason, metadata=dict(info.metadata), code=code)
    # gRPC itself says so: the call never reached a root, or never came back.
    if code is grpc.StatusCode.UNAVAILABLE:
        # What gRPC says where one end speaks TLS and the other does not, or does not trust it.
        tls = any(sign in details.lower() for sign in ("handshake", "socket closed"))
        more = "; a root started with --tls needs it here too (tls=)" if tls else ""
        return Unreachable(
            f"cannot reach a root at {address} ({details}); check that `hearth root` runs there "
            f"and that the address is right{more}",
            reason="UNREACHABLE",
            code=code,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"the root at {address} did not finish before the call's timeout"
    if code is grpc.StatusCode.CANCELLED:
        return cancelled()
    return _BY_CODE.get(code, HearthError)(details, reason=code.name, code=code)


def cancelled() -> Cancelled:
    return Cancelled("the call was cancelled", reason="CANCELLED", code=grpc.StatusCode.CANCELLED)


def _error_info(
    trailers: Iterable[tuple[str, str | bytes]],
) -> error_details_pb2.ErrorInfo | None:
    """Hearth's ErrorInfo in the trailers, or None: a stranger's trailers may be anything."""
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
