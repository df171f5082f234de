"""Interceptor of the worker: authenticates each call, and limits how long its message may take."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from hearth.common.admission import Handshakes, Refusals
from hearth.common.gate import (
    Callers,
    Handler,
    behavior_of,
    refusing,
    streaming,
    without_message,
)
from hearth.common.rpc_errors import abort
from hearth.common.security import ROOT_NAME, Security

_RULE = "this worker takes calls of its cluster's root only"


class Gate(grpc.ServerInterceptor):
    """Refuses calls without the join token or a root's certificate, before their message is read.

    Without `security` (a worker on loopback, or --insecure) anyone may call.
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
        self._callers = Callers(refusals, handshakes)
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
        def refuse(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            self._refuse(context, problem)

        return refusing(refuse)

    def _watched(self, handler: Any) -> Handler:
        behavior = behavior_of(handler)

        # `wraps` copies the attributes that the health service sets on its handlers.
        @functools.wraps(behavior)
        def watched(requests: Iterator[Any], context: grpc.ServicerContext, *more: Any) -> Any:
            self._callers.note(context)
            if self._security is not None:
                self._check_name(context)
            argument = requests if handler.request_streaming else self._only(requests, context)
            try:
                return behavior(argument, context, *more)
            except NotImplementedError:  # raised by stubs; gRPC would log a traceback each time
                status = grpc.StatusCode.UNIMPLEMENTED
                context.abort(status, "this worker does not have this method")

        return streaming(watched, handler)

    def _only(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """The message of a call that has one; the call ends when it does not come."""
        watchdog = threading.Timer(self._seconds, context.cancel)
        watchdog.daemon = True
        watchdog.start()
        try:
            return next(requests)
        except StopIteration:
            abort(context, without_message())
        finally:
            watchdog.cancel()

    def _check_name(self, context: grpc.ServicerContext) -> None:
        """Refuses a client or worker: they have certificates too, and workers have the token."""
        names = [name.decode("utf-8", "replace") for name in context.peer_identities() or ()]
        if ROOT_NAME not in names:
            problem = f"a certificate of {', '.join(names)[:100]}, not of {ROOT_NAME}"
            self._refuse(context, problem)

    def _refuse(self, context: grpc.ServicerContext, problem: str) -> NoReturn:
        abort(context, self._callers.refuse(context, problem, _RULE))
