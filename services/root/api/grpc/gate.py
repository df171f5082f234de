"""Interceptor of the root: authenticates calls, reads their message, turns errors into statuses."""

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from hearth.common.admission import Handshakes, Refusals
from hearth.common.errors import HearthError, Reason
from hearth.common.gate import (
    Behavior,
    Callers,
    Handler,
    behavior_of,
    refusing,
    streaming,
    without_message,
)
from hearth.common.rpc_errors import to_status
from hearth.common.security import ApiKeys

log = logging.getLogger(__name__)

Context = Any  # grpc.aio.ServicerContext; the stubs' own type is a private one

_RULE = "this root takes calls with an API key only (--api-key)"


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
        self._callers = Callers(refusals, handshakes)
        # Until then such a call counts towards the root's limit of calls.
        self._seconds = silence_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler with this gate around it, or one that refuses."""
        if self._keys is not None:
            problem = self._keys.admits(handler_call_details.invocation_metadata)
            if problem:
                return self._refusal(problem)
        handler: Handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.request_streaming:
            return self._guarded_stream(handler)
        return self._guarded(handler, handler_call_details.method.rpartition("/")[2])

    def _refusal(self, problem: str) -> Handler:
        async def refuse(requests: Any, context: Context) -> None:
            await _abort(context, self._callers.refuse(context, problem, _RULE))

        return refusing(refuse)

    def _guarded(self, handler: Handler, method: str) -> Handler:
        """A method with one request. As a stream of bytes, so that the gate reads the message."""
        behavior = behavior_of(handler)

        @functools.wraps(behavior)
        async def guarded(requests: Any, context: Context) -> Any:
            self._callers.note(context)
            try:
                request = await self._request(context, handler.request_deserializer)
                return await behavior(request, context)
            except HearthError as error:
                await _abort(context, error)
            except NotImplementedError:  # raised by stubs; gRPC would log a traceback each time
                status = grpc.StatusCode.UNIMPLEMENTED
                await context.abort(status, "this root does not have this method")
            except grpc.aio.AbortError:
                raise  # the method chose its own status
            except Exception as error:
                log.exception("%s failed", method)
                await _abort(context, _unforeseen(method, error))

        return streaming(guarded, handler, raw=True)

    async def _request(self, context: Context, parse: Callable[[bytes], Any]) -> Any:
        """The one message of a call. Raises HearthError."""
        try:
            data = await asyncio.wait_for(context.read(), self._seconds)
        except TimeoutError:
            problem = f"no message within {self._seconds:g} s of the call"
            raise HearthError(Reason.DEADLINE, problem) from None
        if data is grpc.aio.EOF:
            raise without_message()
        try:
            return parse(data)
        except DecodeError as error:  # for instance text that is not UTF-8
            raise HearthError(
                Reason.INVALID_ARGUMENT,
                f"the message of {len(data)} bytes cannot be read: {error}",
                {"bytes": len(data)},
            ) from None

    def _guarded_stream(self, handler: Handler) -> Handler:
        """A method with a stream of requests; reflection has the only one."""
        behavior: Behavior = behavior_of(handler)
        if not inspect.isasyncgenfunction(behavior):
            return handler

        @functools.wraps(behavior)
        async def guarded(requests: Any, context: Context) -> AsyncIterator[Any]:
            self._callers.note(context)
            async for response in behavior(requests, context):
                yield response

        return handler._replace(stream_stream=guarded)


def _unforeseen(method: str, error: Exception) -> HearthError:
    return HearthError(
        Reason.INTERNAL,
        f"{method} failed on the root: {type(error).__name__}; its log has the details",
    )


async def _abort(context: Context, error: HearthError) -> NoReturn:
    """End the call with `error` as its status."""
    status = to_status(error)
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise error  # abort never returns
