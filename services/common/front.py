"""The public side of a gRPC port: bounds what peers can cost before a call of theirs is authorized.

gRPC listens on a private port of the loopback; the core's front (native/include/hearth/front.h)
forwards connections to it. A service's gate admits a connection at its first authorized call.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any

from hearth import _native
from hearth.common.admission import Peer, Refusals, peer_of
from hearth.common.channels import (
    MAX_CONNECTIONS,
    MAX_STRANGERS,
    SETTINGS_SECONDS,
    SILENCE_SECONDS,
    listen,
)

# Where gRPC listens behind a front.
BEHIND = "127.0.0.1:0"
# After the limit for SETTINGS, until gRPC has surely closed a connection that kept to none.
_MARGIN_SECONDS = 0.5
# For the last bytes of a server that has stopped.
_CLOSE_SECONDS = 1.0
_WAIT_SECONDS = 60.0


class Front:
    """Listens on host:port from `listen`, forwards from `start`, until `close`."""

    def __init__(
        self,
        address: str,
        refusals: Refusals,
        *,
        tls: bool,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """silence_seconds: limit for the first authorized call of a connection."""
        self._address = address
        self._refusals = refusals
        self._tls = tls
        self._silence_seconds = silence_seconds
        self._sockets: list[socket.socket] = []
        self.port = 0
        self._native: _native.Front | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._report, name="front-log", daemon=True)

    def listen(self) -> None:
        """Takes the port; connections wait until `start`.

        Raises HearthError PORT_IN_USE or BAD_ADDRESS.
        """
        self._sockets = listen(self._address)
        self.port = int(self._sockets[0].getsockname()[1])

    def start(self, backend: int) -> None:
        """Accepts connections, and forwards them to `backend`, a port of 127.0.0.1."""
        self._native = _native.Front(
            listeners=[each.fileno() for each in self._sockets],
            backend=backend,
            tls=self._tls,
            connections=MAX_CONNECTIONS,
            strangers=MAX_STRANGERS,
            silence_seconds=self._silence_seconds,
            settle_seconds=SETTINGS_SECONDS + _MARGIN_SECONDS,
        )
        for each in self._sockets:
            each.detach()  # the native front closes it
        self._thread.start()

    def peer(self, context: Any) -> Peer:
        """The address of a call's peer; notes a call if none of it was authorized."""
        host, key = peer_of(context.peer())
        if self._native is None:
            return host, key
        self._native.called(key)
        return self._native.peer(key) or ("a closed connection", 0)

    def admit(self, context: Any, *, settled: bool) -> None:
        """Lets a connection send what it likes: a call of it was authorized.

        settled: at once, not only when gRPC's own limits apply to it.
        """
        if self._native is not None:
            self._native.admit(peer_of(context.peer())[1], settled=settled)

    def counts(self) -> tuple[int, int, int]:
        """Open connections, those that gRPC sees, and authorized ones."""
        if self._native is None:
            return 0, 0, 0
        opened, served, admitted = self._native.counts()
        return opened, served, admitted

    def stop_listening(self) -> None:
        """Accepts no more connections; open ones go on."""
        if self._native is not None:
            self._native.stop_listening()

    def close(self) -> None:
        """Forwards what the server has sent, then closes all connections."""
        self._closed.set()
        for each in self._sockets:
            with suppress(OSError):
                each.close()
        if self._native is not None:
            self._native.close(_CLOSE_SECONDS)
            self._thread.join(timeout=5)

    def _report(self) -> None:
        assert self._native is not None
        while not self._closed.is_set():
            for host, port, cause in self._native.refused(_WAIT_SECONDS):
                self._refusals.note((host, port), self._problem(cause))

    def _problem(self, cause: str) -> str:
        problems = {
            "not_tls": "it did not speak TLS",
            "plaintext": "it spoke gRPC without TLS: it needs --tls",
            "not_http2": "it did not speak gRPC in plaintext",
            "silent": f"no authorized call within {self._silence_seconds:g} s",
            "handshake": (
                "the TLS handshake failed: it has no certificate of this cluster's CA, does not "
                "trust ours, or went away"
            ),
            "bytes": "it sent too much before its first authorized call",
            "calls": "too many of its calls were refused",
            "crowded": "too many connections without an authorized call are open",
            "full": f"it or all hosts have too many of {MAX_CONNECTIONS} connections open",
        }
        return problems.get(cause, cause)
