"""gRPC's asyncio server, made to survive calls of methods that it does not have.

gRPC matches the methods of a service in its core, by their bytes. Any other call goes through a
second queue, whose reader decodes the method's name outside of every handler: a name that is not
UTF-8 ends the reader, and gRPC closes the port (grpcio 1.85, aio/server.pyx.pxi). Here that queue
has a reader of its own, which decodes nothing.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

_cygrpc: Any = cygrpc

# Answers to unknown methods that wait to be sent; calls beyond are cancelled.
_MOST_WAITING = 64


def make_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    options: Sequence[tuple[str, int | str]],
    calls: int,
) -> grpc.aio.Server:
    """A server for at most `calls` at once."""
    server: Any = grpc.aio.server(
        interceptors=interceptors, options=options, maximum_concurrent_rpcs=calls
    )
    loop = asyncio.get_running_loop()
    reader = _Server(loop, None, (), tuple(interceptors), tuple(options), calls)
    reader.set_up(loop, tuple(interceptors))
    server._server = reader
    made: grpc.aio.Server = server
    return made


class _Server(_cygrpc.AioServer):  # type: ignore[misc]
    def set_up(
        self, loop: asyncio.AbstractEventLoop, interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> None:
        self._own_loop = loop
        self._own_interceptors = interceptors
        self._answers: set[asyncio.Task[None]] = set()
        self._no_methods = _cygrpc._MethodResolver([], {})

    def _make_request_call_future(self, method: bytes | None) -> Any:
        """Overrides gRPC's: the next call of `method`; without, of any unknown method."""
        if method is not None:
            return super()._make_request_call_future(method)
        return self._own_loop.create_task(self._refuse_unknown())

    async def _refuse_unknown(self) -> None:
        """Answers calls of unknown methods until the server stops, as the interceptors want."""
        while True:
            call = await self._request_call()
            if len(self._answers) >= _MOST_WAITING:
                continue  # freed, and so cancelled
            answer = _cygrpc._handle_rpc(
                "", self._no_methods, self._own_interceptors, call, self._own_loop, False
            )
            task = self._own_loop.create_task(
                _cygrpc._schedule_rpc_coro(answer, call, self._own_loop, "")
            )
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)
