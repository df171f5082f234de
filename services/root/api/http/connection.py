"""A connection of the HTTP port: uvicorn's protocol with a time limit for the head of a request."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from hearth.common.admission import Peer, peer_address
from hearth.root.api.http import limits
from hearth.root.api.http.call import JSON, encode
from hearth.root.api.http.errors import OPENAI, bad_request

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

Refuse = Callable[[Peer, str], object]


class Connection(H11Protocol):
    """An open connection. Requests find it as `scope["state"]["connection"]`."""

    def __init__(
        self,
        config: Config,
        state: ServerState,
        loop: asyncio.AbstractEventLoop,
        peer: Peer,
        refused: Refuse,
        ended: Callable[[], object],
    ) -> None:
        """refused: is called with the peer and a reason, for the log. ended: when it is over."""
        super().__init__(config, state, {}, loop)
        self.app_state["connection"] = self
        self.peer = peer
        self._refused = refused
        self._ended = ended
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """True while no request runs."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def certificate(self) -> bytes | None:
        """The peer's certificate (DER); None without one."""
        tls = self.transport.get_extra_info("ssl_object")
        return tls.getpeercert(True) if isinstance(tls, ssl.SSLObject) else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # The kernel would hold up to 4 MiB for each reader that is slow.
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, limits.SEND_BUFFER_BYTES
        )
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self._ended()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE:
            self._await_head()  # a part of a head, however it drips
        else:
            self._head_came()

    def send_400_response(self, msg: str) -> None:
        """Overrides uvicorn's: the answer is JSON, and the log line has limits."""
        self.refuse(msg)
        body = encode(OPENAI.body(bad_request("this is not an HTTP/1.1 request"), ""))
        headers = [("content-type", JSON), ("content-length", str(len(body)))]
        response = h11.Response(status_code=400, headers=[*headers, ("connection", "close")])
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            try:
                self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:  # an answer had begun
                break
        self.transport.close()

    def refuse(self, problem: str) -> None:
        """Logs a request that is refused because of its peer."""
        self._refused(self.peer, problem)

    def abort(self) -> None:
        """Closes the connection without sending what waits."""
        if self.transport is not None:
            self.transport.abort()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(limits.HEAD_SECONDS, self._late)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self.refuse(f"no request within {limits.HEAD_SECONDS:g} s")
        self.abort()


def peer_of(address: tuple[object, ...]) -> Peer:
    """The peer of an accepted socket."""
    return peer_address(address)
