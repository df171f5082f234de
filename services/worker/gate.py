"""What every call to a worker passes first: who it is from, and that its message comes in time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from hearth.common.admission import Handshakes, Refusals, peer_of
from hearth.common.errors import HearthError, Reason
from hearth.common.rpc_errors import abort
from hearth.common.security import ROOT_NAME, Security

Handler = Any  # grpc.RpcMethodHandler; generic in its types only


class Gate(grpc.ServerInterceptor):
    """Refuses calls without the join token, or by a certificate that is no root's, before any
    message of theirs is read.

    Without `security` (a worker on loopback, or --insecure) everybody may call.
    """

    def __init__(
        self,
        security: Security | None,
        refusals: Refusals,
        handshakes: Handshakes | None,
        silence_seconds: float,
    ) -> None:
        """silence_seconds: a call whose message has not come by then ends."""
        self._security = security
        self._refusals = refusals
        self._handshakes = handshakes
        # Until then such a call holds a thread of the server.
        self._seconds = silence_seconds

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The method's handler, watched; or one that refuses."""
        if self._security is not None:
            problem = self._security.admits(handler_call_details.invocation_metadata)
            if problem:
                return self._refusal(problem)
        handler: Any = continuation(handler_call_details)
        return None if handler is None else self._watched(handler)

    def _refusal(self, problem: str) -> Handler:
        """A handler of streams, whatever the method is: it is called before a message is read."""

        def refuse(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            self._refuse(context, problem)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _watched(self, handler: Any) -> Handler:
        behavior = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        # What the health service says of its handlers by their attributes goes along.
        @functools.wraps(behavior)
        def watched(requests: Iterator[Any], context: grpc.ServicerContext, *more: Any) -> Any:
            self._note(context)
            if self._security is not None:
                self._check_name(context)
            argument = requests if handler.request_streaming else self._only(requests, context)
            try:
                return behavior(argument, context, *more)
            except NotImplementedError:  # what stubs raise; gRPC would log it as ours each time
                status = grpc.StatusCode.UNIMPLEMENTED
                context.abort(status, "this worker does not have this method")

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(watched, handler.request_deserializer, handler.response_serializer)

    def _only(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """The message of a call that has one; the call ends when it does not come."""
        watchdog = threading.Timer(self._seconds, context.cancel)
        watchdog.daemon = True
        watchdog.start()
        try:
            return next(requests)
        except StopIteration:
            abort(context, HearthError(Reason.INVALID_ARGUMENT, "the call came without a message"))
        finally:
            watchdog.cancel()

    def _check_name(self, context: grpc.ServicerContext) -> None:
        """Clients and workers have certificates too, and workers have the token."""
        names = [name.decode("utf-8", "replace") for name in context.peer_identities() or ()]
        if ROOT_NAME not in names:
            problem = f"a certificate of {', '.join(names)[:100]}, not of {ROOT_NAME}"
            self._refuse(context, problem)

    def _refuse(self, context: grpc.ServicerContext, problem: str) -> NoReturn:
        self._refusals.note(self._note(context), problem)
        text = f"{problem}: this worker takes calls of its cluster's root only"
        abort(context, HearthError(Reason.UNAUTHENTICATED, text))

    def _note(self, context: grpc.ServicerContext) -> tuple[str, int]:
        peer = peer_of(context.peer())
        if self._handshakes is not None:
            self._handshakes.called(peer)
        return peer
