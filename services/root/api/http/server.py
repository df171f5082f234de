"""The HTTP port of a root: accepts connections within limits, and gives them to uvicorn's protocol.

uvicorn's own server is not used: it accepts without a limit, wakes ten times a second, and keeps a
TLS handshake for as long as the peer likes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from email.utils import formatdate
from typing import TYPE_CHECKING

from uvicorn.config import Config
from uvicorn.server import ServerState

from hearth.common import system
from hearth.common.access import Access
from hearth.common.admission import Peer, Refusals, peer_address
from hearth.common.channels import format_address, listen, refuse_exposed, split_address
from hearth.common.errors import HearthError, Reason
from hearth.common.hello import hello
from hearth.root.api.fairness import Turns
from hearth.root.api.http import limits
from hearth.root.api.http.access import Rules
from hearth.root.api.http.app import App, Count
from hearth.root.api.http.connection import Connection
from hearth.root.api.http.requests import Services

if TYPE_CHECKING:
    from hearth.common.api_keys import ApiKeys
    from hearth.common.security import Security

log = logging.getLogger(__name__)

_ACCEPTS = 64  # before the open connections' turn
# Wait when the process has no descriptors left.
_EXHAUSTED_SECONDS = 0.1
# Certificates are read again once a second at most.
_CONTEXT_SECONDS = 1.0


class _State(ServerState):
    """uvicorn's state, with headers of every answer that are true when they are sent."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"date", formatdate(time.time(), usegmt=True).encode())]

    @default_headers.setter
    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Nothing to keep."""


class _Contexts:
    """TLS contexts from the files of the cluster's certificates, which may be renewed."""

    def __init__(self, security: Security, client_certificates: bool) -> None:
        self._security = security
        self._client_certificates = client_certificates
        self._made = self._make()
        self._when = time.monotonic()
        self._problem = ""

    def __call__(self) -> ssl.SSLContext:
        """The newest context that could be made: a certificate is renewed before its key."""
        now = time.monotonic()
        if now - self._when > _CONTEXT_SECONDS:
            self._when = now
            try:
                self._made = self._make()
                self._problem = ""
            except HearthError as error:
                if error.message != self._problem:
                    log.error("the HTTP port keeps its certificate: %s", error.message)
                self._problem = error.message
        return self._made

    def _make(self) -> ssl.SSLContext:
        return self._security.ssl_context(self._client_certificates)


class _Place:
    """A connection from its acceptance to its end."""

    def __init__(self, accepted: socket.socket, peer: Peer) -> None:
        self.socket = accepted
        self.peer = peer
        self.connection: Connection | None = None
        self.task: asyncio.Task[None] | None = None
        # Its first record of TLS has come.
        self.greeted = False

    @property
    def idle(self) -> bool:
        """True while no request runs."""
        return self.connection is None or self.connection.idle

    @property
    def opening(self) -> bool:
        """True from the first record of TLS until the handshake is over."""
        return self.greeted and self.task is not None and not self.task.done()

    def close(self) -> None:
        """Ends it at once."""
        if self.task is not None and not self.task.done():
            self.task.cancel()
        if self.connection is not None:
            self.connection.abort()


class HttpServer:
    """Serves the faces on host:port from `start` to `close`, in the frontend's event loop."""

    def __init__(
        self,
        address: str,
        services: Services,
        *,
        security: Security | None = None,
        api_keys: ApiKeys | None = None,
        insecure: bool = False,
        origins: Sequence[str] = (),
        may_fail: bool = False,
        count: Count = lambda face, status: None,
    ) -> None:
        """By TLS with `security`: clients show an API key, or a certificate where `api_keys` are
        not given. origins: see Rules. may_fail: a port that another program has only means
        that nothing is served. count: is called with face and status of each request.

        Raises HearthError INSECURE.
        """
        refuse_exposed("--http", address, security, insecure)
        self._address = address
        self._may_fail = may_fail
        self._refusals = Refusals("the HTTP port")
        rules = Rules(address, Access(security, api_keys), origins)
        app = App(services, rules, count)
        self._contexts: Callable[[], ssl.SSLContext] | None = None
        if security is not None:
            self._contexts = _Contexts(security, client_certificates=api_keys is None)
        self._config = Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=limits.KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=limits.MAX_HEAD_BYTES,
        )
        # Its warnings have a line for each bad request, without a limit.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._state = _State()
        self._sockets: list[socket.socket] = []
        # In the order of their coming.
        self._places: dict[_Place, None] = {}
        self._hosts: Counter[str] = Counter()
        self._turns = Turns(limits.HANDSHAKES, limits.HANDSHAKES_OF_EACH)
        # TLS handshakes, with the times of their beginning, in this order.
        self._handshakes: dict[_Place, float] = {}
        self._hurrying: asyncio.TimerHandle | None = None
        self.port = 0

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._places)

    @property
    def handshakes(self) -> int:
        """TLS handshakes that run."""
        return len(self._handshakes)

    def start(self) -> int:
        """Listens; returns the port, or 0. Raises HearthError PORT_IN_USE or BAD_ADDRESS."""
        self._config.load()
        try:
            self._sockets = listen(self._address)
        except HearthError as error:
            if error.reason != Reason.PORT_IN_USE or not self._may_fail:
                raise
            log.warning("HTTP is off: %s (--http HOST:PORT)", error.message)
            return 0
        self.port = int(self._sockets[0].getsockname()[1])
        host, _ = split_address(self._address)
        scheme = "http" if self._contexts is None else "https"
        log.info("HTTP for other clients at %s://%s/v1", scheme, format_address(host, self.port))
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            each.setblocking(False)
            loop.add_reader(each, self._accept, each)
        return self.port

    def stop_listening(self) -> None:
        """Accepts no more connections; running requests go on, and are their connections' last."""
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            loop.remove_reader(each)
            each.close()
        self._sockets = []
        for place in list(self._places):
            if place.connection is not None and not place.idle:
                place.connection.shutdown()
            else:
                place.close()

    async def close(self) -> None:
        """Ends all connections, after a moment for what was written last."""
        self.stop_listening()
        tasks = set(self._state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=limits.CLOSE_SECONDS)
        for place in list(self._places):
            place.close()
        if tasks:
            await asyncio.wait(tasks, timeout=limits.CLOSE_SECONDS)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_ACCEPTS):
            try:
                accepted, address = listening.accept()
            except BlockingIOError:
                return
            except OSError:
                self._drop()
                loop.remove_reader(listening)
                loop.call_later(_EXHAUSTED_SECONDS, self._accept_again, listening)
                return
            accepted.setblocking(False)
            place = _Place(accepted, peer_address(address))
            self._places[place] = None
            self._hosts[place.peer[0]] += 1
            if len(self._places) > limits.MAX_CONNECTIONS:
                self._drop()
            if place in self._places:
                place.task = loop.create_task(self._open(place))

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def _open(self, place: _Place) -> None:
        """Makes the connection, after its TLS handshake if there is one."""
        loop = asyncio.get_running_loop()

        def make() -> Connection:
            place.connection = Connection(
                self._config,
                self._state,
                loop,
                place.peer,
                self._refusals.note,
                lambda: self._forget(place),
            )
            return place.connection

        try:
            with suppress(OSError):
                place.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._contexts is None:
                await loop.connect_accepted_socket(make, place.socket)
                return
            async with asyncio.timeout(limits.HEAD_SECONDS):
                await hello(place.socket)
            place.greeted = True
            async with self._turns.turn(place.peer[0]):
                self._handshakes[place] = loop.time()
                if self._hurrying is None:
                    patience = limits.HANDSHAKE_PATIENCE_SECONDS
                    self._hurrying = loop.call_later(patience, self._hurry)
                try:
                    await loop.connect_accepted_socket(
                        make,
                        place.socket,
                        ssl=self._contexts(),
                        ssl_handshake_timeout=limits.HEAD_SECONDS,
                    )
                finally:
                    del self._handshakes[place]
        except OSError as error:  # ssl.SSLError and ConnectionError among them
            late = f"it took {limits.HEAD_SECONDS:g} s"
            problem = late if isinstance(error, TimeoutError) else getattr(error, "reason", error)
            self._refusals.note(place.peer, f"the TLS handshake failed: {problem}")
            self._forget(place)
        except asyncio.CancelledError:
            self._forget(place)
        except Exception:
            log.exception("a connection to the HTTP port could not be made")
            self._forget(place)

    def _hurry(self) -> None:
        """Ends handshakes that have had their time, as many as wait for a turn.

        Those of the host with the most come first, of these the oldest.
        """
        patience = limits.HANDSHAKE_PATIENCE_SECONDS
        self._hurrying = None
        if not self._handshakes:
            return
        loop = asyncio.get_running_loop()
        self._hurrying = loop.call_later(patience / 4, self._hurry)
        hosts = Counter(each.peer[0] for each in self._handshakes)
        late = [each for each, begun in self._handshakes.items() if loop.time() - begun > patience]
        late.sort(key=lambda each: -hosts[each.peer[0]])
        for place in late[: self._turns.waiting]:
            self._end(place, "others wait for their TLS handshakes")

    def _forget(self, place: _Place) -> None:
        if place not in self._places:
            return
        del self._places[place]
        host = place.peer[0]
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]
        if place.connection is None:
            place.socket.close()

    def _drop(self) -> None:
        """Closes the oldest idle connection of the host that has the most; else the newest.

        Of the idle ones, those that have sent nothing whole where they have more than half of the
        places; else those whose handshake is not over, then the others.
        """
        problem = f"{limits.MAX_CONNECTIONS} connections are open"
        for most, _ in self._hosts.most_common():
            mine = [each for each in self._places if each.peer[0] == most and each.idle]
            silent = [each for each in mine if not each.greeted]
            if len(silent) <= limits.MAX_CONNECTIONS // 2:
                opening = [each for each in mine if each.opening]
                silent = opening or [each for each in mine if each.greeted] or silent
            if silent:
                # One whose bytes wait for this port is not the one to blame, unless all are so.
                waited_for = (each for each in silent if not system.is_readable(each.socket))
                self._end(next(waited_for, silent[0]), problem)
                return
        if self._places:
            self._end(next(reversed(self._places)), problem)

    def _end(self, place: _Place, problem: str) -> None:
        self._refusals.note(place.peer, problem)
        self._forget(place)
        place.close()
