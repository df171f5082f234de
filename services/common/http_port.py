"""A small HTTP server for probes and scrapes: GET and HEAD of a few paths, bounded throughout.

One thread runs it. A connection has one request and a few seconds. When all places are taken, a new
connection gets the place of another: the oldest of the host that has the most. So idle connections
of a single host cannot keep out a probe, even from that host.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from hearth.common.admission import Peer, Refusals, peer_address
from hearth.common.channels import listen
from hearth.common.errors import HearthError

# For the TLS handshake, the request, and the answer, each.
SILENCE_SECONDS = 5.0
MAX_CONNECTIONS = 64
MAX_REQUEST_BYTES = 8 << 10
# Wait when the process has no descriptors left.
_EXHAUSTED_SECONDS = 0.1
_DISCARD_SECONDS = 0.2


@dataclass(frozen=True)
class Answer:
    """A response; its body is text unless `content_type` says otherwise."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"


# Headers of the request, names in lower case -> the answer.
Route = Callable[[Mapping[str, str]], Answer]


@dataclass(frozen=True)
class Tls:
    """TLS of a port: the context of a new connection, and the reason to refuse its peer, or ""."""

    context: Callable[[], ssl.SSLContext]
    problem: Callable[[ssl.SSLObject], str]


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    peer: Peer
    task: asyncio.Task[None] | None = None
    begun: bool = False


class HttpPort:
    """Answers on host:port from its construction to `stop`.

    `port`: the port it listens on.
    """

    def __init__(
        self,
        address: str,
        routes: Mapping[str, Route],
        *,
        name: str,
        tls: Tls | None = None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """name: of the port in log lines.

        Raises HearthError PORT_IN_USE or BAD_ADDRESS.
        """
        self._routes = routes
        self._tls = tls
        self._seconds = silence_seconds
        self._refusals = Refusals(f"the {name} port")
        self._sockets = listen(address)
        for each in self._sockets:
            each.setblocking(False)
        self.port = int(self._sockets[0].getsockname()[1])
        # In the order of their coming.
        self._connections: dict[_Connection, None] = {}
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-port", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Closes the port and its connections."""
        with suppress(RuntimeError):  # stopped before
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            for each in self._sockets:
                each.close()
            self._loop.close()

    async def _serve(self) -> None:
        accepting = [self._loop.create_task(self._accept(each)) for each in self._sockets]
        await self._stopping.wait()
        conversing = [each.task for each in self._connections if each.task is not None]
        for task in (*accepting, *conversing):
            task.cancel()
        await asyncio.gather(*accepting, *conversing, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                accepted, address = await self._loop.sock_accept(listening)
            except OSError:
                self._drop()
                await asyncio.sleep(_EXHAUSTED_SECONDS)
                continue
            connection = _Connection(accepted, peer_address(address))
            self._connections[connection] = None
            connection.task = self._loop.create_task(self._converse(connection))
            if len(self._connections) > MAX_CONNECTIONS:
                self._drop()

    def _drop(self) -> None:
        """Closes the oldest connection of the host that has the most."""
        hosts = Counter(each.peer[0] for each in self._connections)
        for most, _ in hosts.most_common(1):
            oldest = next(each for each in self._connections if each.peer[0] == most)
            del self._connections[oldest]
            if oldest.task is not None:
                oldest.task.cancel()
            if not oldest.begun:
                oldest.socket.close()  # a task cancelled before it begins runs nothing
            self._refuse(oldest, f"{MAX_CONNECTIONS} connections are open")

    async def _converse(self, connection: _Connection) -> None:
        connection.begun = True
        transport: asyncio.Transport | None = None
        try:
            reader = asyncio.StreamReader(limit=MAX_REQUEST_BYTES)
            protocol = asyncio.StreamReaderProtocol(reader)
            context = self._tls.context() if self._tls is not None else None
            made, _ = await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection.socket,
                ssl=context,
                ssl_handshake_timeout=self._seconds if context is not None else None,
            )
            assert isinstance(made, asyncio.Transport)
            transport = made
            if self._tls is not None:
                problem = self._tls.problem(transport.get_extra_info("ssl_object"))
                if problem:
                    self._refuse(connection, problem)
                    return
            writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
            answer, head_only = await self._request(reader, connection)
            writer.write(_encoded(answer, head_only))
            async with asyncio.timeout(self._seconds):
                await writer.drain()
                if answer.status != HTTPStatus.OK:
                    await _discard(reader)
                writer.close()
                await writer.wait_closed()
        except TimeoutError:
            self._refuse(connection, f"its answer was not read within {self._seconds:g} s")
        except ssl.SSLError as error:
            self._refuse(connection, f"the TLS handshake failed: {error.reason or error}")
        except OSError as error:
            self._refuse(connection, f"no request: {error or type(error).__name__}")
        except HearthError as error:
            self._refuse(connection, str(error))
        finally:
            self._connections.pop(connection, None)
            if transport is not None:
                transport.abort()
            else:
                connection.socket.close()

    async def _request(
        self, reader: asyncio.StreamReader, connection: _Connection
    ) -> tuple[Answer, bool]:
        """Reads a request: its answer, and whether only the head is wanted."""
        try:
            async with asyncio.timeout(self._seconds):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            self._refuse(connection, f"no request within {self._seconds:g} s")
            return _failure(HTTPStatus.REQUEST_TIMEOUT), False
        except asyncio.LimitOverrunError:
            self._refuse(connection, f"a request of more than {MAX_REQUEST_BYTES} bytes")
            return _failure(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), False
        except asyncio.IncompleteReadError:
            raise ConnectionError("it closed the connection") from None
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _failure(HTTPStatus.BAD_REQUEST), False
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _failure(HTTPStatus.METHOD_NOT_ALLOWED), False
        route = self._routes.get(target.partition("?")[0])
        if route is None:
            return _failure(HTTPStatus.NOT_FOUND), method == "HEAD"
        fields = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        return route(headers), method == "HEAD"

    def _refuse(self, connection: _Connection, problem: str) -> None:
        self._refusals.note(connection.peer, problem)


async def _discard(reader: asyncio.StreamReader) -> None:
    """Reads what a refused peer still sends: closing at once would destroy the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while await reader.read(MAX_REQUEST_BYTES):
                pass


def _failure(status: HTTPStatus) -> Answer:
    return Answer(f"{status.phrase}\n".encode(), status)


def _encoded(answer: Answer, head_only: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Connection: close",
    ]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    return head if head_only else head + answer.body
