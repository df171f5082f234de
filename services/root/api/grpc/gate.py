"""What every call to a root passes first: who it is from, and that its message comes in time."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from hearth.common.admission import Handshakes, Refusals, peer_of
from hearth.common.errors import HearthError, Reason
from hearth.common.rpc_errors import to_status
from hearth.common.security import ApiKeys

Context = Any  # grpc.aio.ServicerContext; the stubs' own type is a private one


class Gate(grpc.aio.ServerInterceptor):
    """Refuses calls without an API key, where there are keys, before any message is read."""

    def __init__(
        self,
        keys: ApiKeys | None,
        refusals: Refusals,
        handshakes: Handshakes | None,
        silence_seconds: float,
    ) -> None:
        """silence_seconds: a call whose message has not come by then ends."""
        self._keys = keys
        self._refusals = refusals
        self._handshakes = handshakes
        # Until then such a call has a place among the root's calls.
        self._seconds = silence_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler, watched; or one that refuses."""
        if self._keys is not None:
            problem = self._keys.admits(handler_call_details.invocation_metadata)
            if problem:
                return self._refusal(problem)
        handler: Any = await continuation(handler_call_details)
        return None if handler is None else self._watched(handler)

    def _refusal(self, problem: str) -> Any:
        """A handler of streams, whatever the method is: it is called before a message is read."""

        async def refuse(requests: Any, context: Context) -> None:
            self._refusals.note(self._note(context), problem)
            text = f"{problem}: this root takes calls with an API key only (--api-key)"
            status = to_status(HearthError(Reason.UNAUTHENTICATED, text))
            await context.abort(status.code, status.details, status.trailing_metadata)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _watched(self, handler: Any) -> Any:
        behavior = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        if handler.request_streaming:
            return self._watched_stream(handler, behavior)

        @functools.wraps(behavior)
        async def watched(requests: Any, context: Context) -> Any:
            self._note(context)
            try:
                request = await asyncio.wait_for(context.read(), self._seconds)
            except TimeoutError:
                problem = f"no message within {self._seconds:g} s of the call"
                await _abort(context, Reason.DEADLINE, problem)
            if request is grpc.aio.EOF:
                await _abort(context, Reason.INVALID_ARGUMENT, "the call came without a message")
            try:
                return await behavior(request, context)
            except NotImplementedError:  # what stubs raise; gRPC would log it as ours each time
                status = grpc.StatusCode.UNIMPLEMENTED
                await context.abort(status, "this root does not have this method")

        make: Any = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(watched, handler.request_deserializer, handler.response_serializer)

    def _watched_stream(self, handler: Any, behavior: Any) -> Any:
        """Of reflection, the one service here whose requests are streams."""
        if not inspect.isasyncgenfunction(behavior):
            return handler

        @functools.wraps(behavior)
        async def watched(requests: Any, context: Context) -> AsyncIterator[Any]:
            self._note(context)
            async for response in behavior(requests, context):
                yield response

        return handler._replace(stream_stream=watched)

    def _note(self, context: Context) -> tuple[str, int]:
        peer = peer_of(context.peer())
        if self._handshakes is not None:
            self._handshakes.called(peer)
        return peer


async def _abort(context: Context, reason: Reason, problem: str) -> None:
    status = to_status(HearthError(reason, problem))
    await context.abort(status.code, status.details, status.trailing_metadata)
