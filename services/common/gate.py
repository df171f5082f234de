"""The common half of both services' gates: admission of connections, and gRPC handlers.

A gate is an interceptor. It authenticates each call and limits how long the first message may take.
"""

from __future__ import annotations

from typing import Any

import grpc

from hearth.common.admission import Peer, Refusals, peer_of
from hearth.common.errors import HearthError, Reason
from hearth.common.front import Front

Handler = Any  # grpc.RpcMethodHandler; generic only in its type stubs
Behavior = Any  # the servicer's method


class Callers:
    """Tells the port's front of calls, and logs refused ones."""

    def __init__(self, refusals: Refusals, front: Front | None) -> None:
        self._refusals = refusals
        self._front = front

    def admit(self, context: Any, *, settled: bool) -> None:
        """Notes an authorized call: its connection is no stranger's any more."""
        if self._front is not None:
            self._front.admit(context, settled=settled)

    def peer(self, context: Any) -> Peer:
        """The caller's address."""
        if self._front is not None:
            return self._front.peer(context)
        return peer_of(context.peer())

    def note(self, context: Any, problem: str) -> None:
        """Logs a call that is ended because of its peer."""
        self._refusals.note(self.peer(context), problem)

    def refuse(self, context: Any, error: HearthError, rule: str) -> HearthError:
        """Logs a refused call; returns its error, with the rule that applies."""
        self.note(context, error.message)
        if error.reason != Reason.UNAUTHENTICATED:
            return error
        return HearthError(Reason.UNAUTHENTICATED, f"{error.message}: {rule}")


def without_message() -> HearthError:
    """Error for a call that ended without its message."""
    return HearthError(Reason.INVALID_ARGUMENT, "the call came without a message")


def behavior_of(handler: Handler) -> Behavior:
    """The servicer's method behind a handler of any of the four kinds."""
    return (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )


def streaming(behavior: Behavior, handler: Handler, *, raw: bool = False) -> Handler:
    """A handler like `handler` with a `behavior` that takes a stream of requests.

    gRPC then calls it before reading a message. raw: requests come as bytes.
    """
    make: Any = (
        grpc.stream_stream_rpc_method_handler
        if handler.response_streaming
        else grpc.stream_unary_rpc_method_handler
    )
    read = None if raw else handler.request_deserializer
    return make(behavior, read, handler.response_serializer)


def refusing(behavior: Behavior) -> Handler:
    """A handler for any method, called before a message is read."""
    return grpc.stream_stream_rpc_method_handler(behavior)
