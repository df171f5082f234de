"""A small HTTP server for probes and scrapes: GET and HEAD of a few paths, bounded throughout.

One thread runs it. A connection has one request and a few seconds. Three kinds have places of their
own: silent ones, those with a whole request or TLS hello, and those with an accepted certificate.
When all of a kind are taken, the next connection gets the place of another: of the host that has
the most, the one that has been waited for the longest. So connections of one host that do nothing
cannot keep out a probe, even from that host.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

from hearth.common import system
from hearth.common.admission import Peer, Refusals, peer_address
from hearth.common.channels import listen
from hearth.common.errors import HearthError
from hearth.common.hello import LOOK_SECONDS, missing

# For the request and for the answer, each; with TLS, twice this for all.
SILENCE_SECONDS = 5.0
MAX_SILENT = 128
# A flood of hellos is no faster than this port's handshakes. So with as many places as it makes
# handshakes in half a second, a client has this time for its part.
MAX_OPENED = 256
MAX_ACCEPTED = 64
MAX_REQUEST_BYTES = 8 << 10
_ACCEPTS = 64  # before the open connections' turn
# Wait when the process has no descriptors left.
_EXHAUSTED_SECONDS = 0.1
_DISCARD_SECONDS = 0.2


T = TypeVar("T")


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
    problem: Callable[[ssl.SSLSocket], str]


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    peer: Peer
    head: bytearray = field(default_factory=bytearray)
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    # Bytes without which it is not looked at again; with TLS only.
    wanted: int = 1


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
        # Without a request or a whole hello, in the order of their coming; those with one, and of
        # these the ones with a certificate, in the order in which they were last waited for.
        self._silent: dict[_Connection, None] = {}
        self._opened: dict[_Connection, None] = {}
        self._accepted: dict[_Connection, None] = {}
        self._loop = asyncio.SelectorEventLoop()  # Windows' usual one has no add_reader
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
        for each in self._sockets:
            self._loop.add_reader(each, self._accept, each)
        await self._stopping.wait()
        for each in self._sockets:
            self._loop.remove_reader(each)
        running = [*self._opened, *self._accepted]
        tasks = [each.task for each in running if each.task is not None]
        for connection in [*self._silent, *running]:
            self._end(connection)
        await asyncio.gather(*tasks, return_exceptions=True)

    # Until its request is there, a connection is a socket and a few bytes, without a task: in a
    # flood of connections, one with a request must not wait for the others.

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                accepted, address = listening.accept()
            except BlockingIOError:
                return
            except OSError:
                self._drop(self._silent or self._opened)
                self._loop.remove_reader(listening)
                again = (listening, self._accept, listening)
                self._loop.call_later(_EXHAUSTED_SECONDS, self._loop.add_reader, *again)
                return
            accepted.setblocking(False)
            connection = _Connection(accepted, peer_address(address))
            connection.timer = self._loop.call_later(self._seconds, self._late, connection)
            self._silent[connection] = None
            self._loop.add_reader(accepted, self._read, connection)
            self._read(connection)
            self._limit(self._silent, MAX_SILENT)

    def _limit(self, places: dict[_Connection, None], most: int) -> None:
        if len(places) > most:
            self._drop(places)

    def _drop(self, places: dict[_Connection, None]) -> None:
        """Closes the first of the places that the host with the most of them has.

        One whose bytes wait for this port is not the one to blame, unless all are so.
        """
        hosts = Counter(each.peer[0] for each in places)
        for most, _ in hosts.most_common(1):
            mine = [each for each in places if each.peer[0] == most]
            waited_for = (each for each in mine if not system.is_readable(each.socket))
            first = next(waited_for, mine[0])
            self._refuse(first, f"{len(places) - 1} connections of its kind are open")
            self._end(first)

    def _opens(self, connection: _Connection) -> None:
        """Gives a place to a connection with a request or a whole hello."""
        self._silent.pop(connection, None)
        self._opened[connection] = None
        self._limit(self._opened, MAX_OPENED)

    def _late(self, connection: _Connection) -> None:
        self._refuse(connection, f"no request within {self._seconds:g} s")
        self._reply(connection, _failure(HTTPStatus.REQUEST_TIMEOUT))

    def _read(self, connection: _Connection) -> None:
        """Reads a request as far as it is there."""
        if self._tls is not None:
            self._begin_tls(connection, self._tls)
            return
        try:
            data = connection.socket.recv(MAX_REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(connection)
            return
        connection.head += data
        if b"\r\n\r\n" in connection.head:
            answer, head_only = self._answer(bytes(connection.head))
            self._reply(connection, answer, head_only)
        elif len(connection.head) >= MAX_REQUEST_BYTES:
            self._refuse(connection, f"a request of more than {MAX_REQUEST_BYTES} bytes")
            self._reply(connection, _failure(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))

    def _reply(self, connection: _Connection, answer: Answer, head_only: bool = False) -> None:
        if self._tls is not None and connection.task is None:
            self._end(connection)  # late, and without a handshake
            return
        self._collected(connection)
        connection.task = self._loop.create_task(self._send(connection, answer, head_only))
        self._opens(connection)

    async def _send(self, connection: _Connection, answer: Answer, head_only: bool) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._loop.sock_sendall(connection.socket, _encoded(answer, head_only))
            if answer.status != HTTPStatus.OK:
                # Closing at once would destroy the answer if the peer still sends.
                connection.socket.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(_DISCARD_SECONDS):
                    while await self._loop.sock_recv(connection.socket, MAX_REQUEST_BYTES):
                        pass
        except (TimeoutError, OSError):
            pass  # the peer does not read, or has left
        finally:
            self._end(connection)

    def _begin_tls(self, connection: _Connection, tls: Tls) -> None:
        try:
            wanted = missing(connection.socket)
        except BlockingIOError:
            return
        except OSError as error:
            if not isinstance(error, ConnectionResetError):
                self._refuse(connection, f"the TLS handshake failed: {error}")
            self._end(connection)
            return
        if wanted:
            if wanted == connection.wanted:  # woken without them
                if system.has_left(connection.socket):
                    self._end(connection)
                    return
                self._loop.remove_reader(connection.socket)
                self._loop.call_later(LOOK_SECONDS, self._look_again, connection)
            connection.wanted = wanted
            system.wake_at(connection.socket, wanted)
            return
        system.wake_at(connection.socket, 1)
        self._collected(connection)
        connection.task = self._loop.create_task(self._converse(connection, tls))
        self._opens(connection)

    def _look_again(self, connection: _Connection) -> None:
        if connection in self._silent:
            self._loop.add_reader(connection.socket, self._read, connection)

    async def _converse(self, connection: _Connection, tls: Tls) -> None:
        """A request and its answer by TLS. asyncio's own TLS takes 256 KiB for each connection."""
        try:
            peer = tls.context().wrap_socket(
                connection.socket, server_side=True, do_handshake_on_connect=False
            )
            connection.socket = peer
            async with asyncio.timeout(2 * self._seconds):
                await self._patiently(connection, peer.do_handshake)
                problem = tls.problem(peer)
                if problem:
                    self._refuse(connection, problem)
                    return
                # From here on those without a certificate do not push it out.
                self._opened.pop(connection, None)
                self._accepted[connection] = None
                self._limit(self._accepted, MAX_ACCEPTED)
                rest = memoryview(_encoded(*await self._request(connection, peer)))
                while rest:
                    sent = await self._patiently(connection, functools.partial(peer.send, rest))
                    rest = rest[sent:]
            with suppress(OSError):  # its half is not waited for
                peer.unwrap()
        except TimeoutError:
            self._refuse(connection, f"no request within {2 * self._seconds:g} s")
        except ssl.SSLError as error:
            self._refuse(connection, f"the TLS handshake failed: {error.reason or error}")
        except OSError as error:
            self._refuse(connection, f"no request: {error or type(error).__name__}")
        except HearthError as error:
            self._refuse(connection, str(error))
        finally:
            self._end(connection)

    async def _patiently(self, connection: _Connection, step: Callable[[], T]) -> T:
        """Repeats a step of a non-blocking connection until it need not wait."""
        peer = connection.socket
        while True:
            ready = self._loop.create_future()
            try:
                return step()
            except ssl.SSLWantReadError:
                watch, forget = self._loop.add_reader, self._loop.remove_reader
            except ssl.SSLWantWriteError:
                watch, forget = self._loop.add_writer, self._loop.remove_writer
            for places in (self._opened, self._accepted):
                if connection in places:  # from now on its peer is waited for
                    places[connection] = places.pop(connection)
            watch(peer, _set, ready)
            try:
                await ready
            finally:
                forget(peer)

    async def _request(self, connection: _Connection, peer: ssl.SSLSocket) -> tuple[Answer, bool]:
        head = bytearray()
        while b"\r\n\r\n" not in head:
            if len(head) >= MAX_REQUEST_BYTES:
                return _failure(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), False
            read = functools.partial(peer.recv, MAX_REQUEST_BYTES)
            data = await self._patiently(connection, read)
            if not data:
                raise ConnectionError("it closed the connection")
            head += data
        return self._answer(bytes(head))

    def _answer(self, request: bytes) -> tuple[Answer, bool]:
        """The answer to a request, and whether only its head is wanted."""
        first, *lines = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
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

    def _collected(self, connection: _Connection) -> None:
        """Ends the wait for a request."""
        if connection.timer is not None:
            connection.timer.cancel()
        if connection.socket.fileno() >= 0:
            self._loop.remove_reader(connection.socket)

    def _end(self, connection: _Connection) -> None:
        all_places = (self._silent, self._opened, self._accepted)
        if not any(connection in places for places in all_places):
            return
        for places in all_places:
            places.pop(connection, None)
        self._collected(connection)
        if connection.task is None or connection.task is asyncio.current_task(self._loop):
            connection.socket.close()
        else:
            connection.task.add_done_callback(lambda _: connection.socket.close())
            connection.task.cancel()

    def _refuse(self, connection: _Connection, problem: str) -> None:
        self._refusals.note(connection.peer, problem)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


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
