"""Interceptor of the worker: authenticates each call, and limits how long its message may take."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc

from hearth.common.access import peer_certificate
from hearth.common.admission import Refusals
from hearth.common.certificates import Role
from hearth.common.errors import HearthError, Reason
from hearth.common.front import Front
from hearth.common.gate import (
    Callers,
    Handler,
    behavior_of,
    refusing,
    streaming,
    without_message,
)
from hearth.common.live_calls import LiveCalls
from hearth.common.rpc_errors import abort
from hearth.common.security import Security

# Calls at once that wait for their first message.
_MOST_SILENT = 8
_RULE = "this worker takes calls of its cluster's root only"


class Gate(grpc.ServerInterceptor):
    """Refuses calls without the join token or a root's certificate, before their message is read.

    Without `security` (a worker on loopback, or --insecure) anyone may call.
    """

    def __init__(
        self,
        security: Security | None,
        refusals: Refusals,
        front: Front | None,
        silence_seconds: float,
    ) -> None:
        """silence_seconds: a call whose message has not come by then ends."""
        self._security = security
        self._live = LiveCalls()
        self._lock = threading.Lock()
        # Calls without their first message yet, in the order of their coming.
        self._silent: dict[grpc.ServicerContext, None] = {}
        self._callers = Callers(refusals, front)
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
                return self._refusal(HearthError(Reason.UNAUTHENTICATED, problem))
        handler: Any = continuation(handler_call_details)
        return None if handler is None else self._watched(handler)

    def _refusal(self, problem: HearthError) -> Handler:
        def refuse(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            self._refuse(context, problem)

        return refusing(refuse)

    def _watched(self, handler: Any) -> Handler:
        behavior = behavior_of(handler)

        # `wraps` copies the attributes that the health service sets on its handlers.
        @functools.wraps(behavior)
        def watched(requests: Iterator[Any], context: grpc.ServicerContext, *more: Any) -> Any:
            if self._security is not None:
                self._watch_root(self._security, context)
            # A root with certificates is trusted; without them, anyone could call.
            self._callers.admit(context, settled=self._security is not None)
            read = self._stream if handler.request_streaming else self._only
            argument = read(requests, context)
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
            with self._silence(context):
                return next(requests)
        except StopIteration:
            abort(context, without_message())
        finally:
            watchdog.cancel()

    def _stream(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """The messages of a stream, which has a time limit of its own for the first."""
        with self._silence(context):
            first = next(requests, None)
        if first is not None:
            yield first
            yield from requests

    @contextmanager
    def _silence(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Too many calls that wait for their first message end the oldest: each holds a thread."""
        with self._lock:
            self._silent[context] = None
            oldest = next(iter(self._silent)) if len(self._silent) > _MOST_SILENT else None
            if oldest is not None:
                del self._silent[oldest]
        if oldest is not None:
            oldest.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._silent.pop(context, None)

    def _watch_root(self, security: Security, context: grpc.ServicerContext) -> None:
        """Refuses all but the root's certificate, and ends the call when that is revoked.

        Clients and workers have certificates too, and workers have the token.
        """
        try:
            peer = peer_certificate(context)
        except HearthError as error:
            self._refuse(context, error)
        problem = security.refusal(peer, (Role.ROOT,))
        if problem:
            self._refuse(context, HearthError(Reason.UNAUTHENTICATED, problem))
        held = self._live.add(functools.partial(security.revocation, peer), context.cancel)
        if not context.add_callback(functools.partial(self._live.remove, held)):
            self._live.remove(held)  # the call has ended already

    def _refuse(self, context: grpc.ServicerContext, problem: HearthError) -> NoReturn:
        abort(context, self._callers.refuse(context, problem, _RULE))
