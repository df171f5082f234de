"""Interceptor of the root: authenticates calls, reads their message, turns errors into statuses."""

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from hearth.common.access import Access, Caller, check_allowed
from hearth.common.admission import Refusals
from hearth.common.errors import HearthError, Reason
from hearth.common.front import Front
from hearth.common.gate import (
    Behavior,
    Callers,
    Handler,
    behavior_of,
    refusing,
    streaming,
    without_message,
)
from hearth.common.live_calls import LiveCalls
from hearth.common.rpc_errors import to_status
from hearth.root.api.fairness import CLIENT, Places, Turns
from hearth.root.api.grpc.pacing import Paced
from hearth.root.api.validity import while_valid

log = logging.getLogger(__name__)

Context = Any  # grpc.aio.ServicerContext; the stubs' own type is a private one

# Messages read at once: gRPC makes room for a whole message (4 MiB) while one is read.
_READERS = 64
# Calls of one client that wait for their message: each holds a place.
_MOST_SILENT = 32
# A client that has not read a message for this long has left.
WRITE_SECONDS = 30.0

_KEY_RULE = "this root takes calls with an API key only (HEARTH_API_KEY, --api-key-file)"
_CERTIFICATE_RULE = "this root takes calls of clients and operators of its cluster only"


class Gate(grpc.aio.ServerInterceptor):
    """Refuses calls without an API key or a client's certificate, before a message is read.

    Calls that run end when their key or certificate is revoked.
    """

    def __init__(
        self,
        access: Access,
        refusals: Refusals,
        front: Front | None,
        silence_seconds: float,
        calls: int,
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        """silence_seconds: a call whose message has not come by then ends. calls: at once.

        write_seconds: a call whose client does not read ends.
        """
        self._access = access
        self._live = LiveCalls()
        self._calls = Places(calls, "calls")
        # Of each client: time limits of calls that wait for their message, oldest first.
        self._silent: dict[str, dict[asyncio.Timeout, None]] = {}
        self._readers = Turns(_READERS, _READERS // 4)
        self._callers = Callers(refusals, front)
        # Until then such a call counts towards the root's limit of calls.
        self._seconds = silence_seconds
        self._write_seconds = write_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler with this gate around it, or one that refuses."""
        method = handler_call_details.method
        holder: Caller | None = None
        if self._access.by_key:
            try:
                holder = self._access.key_holder(handler_call_details.invocation_metadata)
            except HearthError as error:
                return self._refusal(error)
        handler: Handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.request_streaming:
            return self._guarded_stream(handler, holder, method)
        return self._guarded(handler, holder, method)

    def _refusal(self, problem: HearthError) -> Handler:
        async def refuse(requests: Any, context: Context) -> None:
            await _abort(context, self._callers.refuse(context, problem, _KEY_RULE))

        return refusing(refuse)

    async def _admit(self, context: Context, holder: Caller | None, method: str) -> Caller:
        """The caller, if it may call this method; the call ends otherwise."""
        try:
            caller = holder or self._access.certificate_holder(context)
            check_allowed(caller, method)
        except HearthError as error:
            await _abort(context, self._callers.refuse(context, error, _CERTIFICATE_RULE))
        self._callers.admit(context, settled=False)
        return caller

    def _guarded(self, handler: Handler, holder: Caller | None, full_name: str) -> Handler:
        """A method with one request. As a stream of bytes, so that the gate reads the message."""
        behavior = behavior_of(handler)
        method = full_name.rpartition("/")[2]

        @functools.wraps(behavior)
        async def guarded(requests: Any, context: Context) -> Any:
            caller = await self._admit(context, holder, full_name)
            client = caller.name or self._callers.peer(context)[0]
            CLIENT.set(client)
            try:
                with while_valid(self._live, self._access, caller), self._calls.hold(client):
                    request = await self._request(context, handler.request_deserializer, client)
                    return await behavior(request, self._paced(context))
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

    @asynccontextmanager
    async def _message_limit(self, client: str) -> AsyncIterator[None]:
        """The time for a message to come. Too many calls that wait for theirs end the oldest."""
        silent = self._silent.setdefault(client, {})
        try:
            async with asyncio.timeout(self._seconds) as limit:
                silent[limit] = None
                if len(silent) > _MOST_SILENT:
                    oldest = next(iter(silent))
                    del silent[oldest]
                    oldest.reschedule(asyncio.get_running_loop().time())
                yield
        finally:
            silent.pop(limit, None)
            if not silent and self._silent.get(client) is silent:
                del self._silent[client]

    def _paced(self, context: Context) -> Context:
        return Paced(context, self._write_seconds, self._callers)

    async def _request(self, context: Context, parse: Callable[[bytes], Any], client: str) -> Any:
        """The one message of a call. Raises HearthError."""
        try:
            async with self._message_limit(client), self._readers.turn(client):
                data = await context.read()
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

    def _guarded_stream(self, handler: Handler, holder: Caller | None, full_name: str) -> Handler:
        """A method with a stream of requests; reflection has the only one."""
        behavior: Behavior = behavior_of(handler)
        if not inspect.isasyncgenfunction(behavior):
            return handler

        @functools.wraps(behavior)
        async def guarded(requests: Any, context: Context) -> AsyncIterator[Any]:
            await self._admit(context, holder, full_name)
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
