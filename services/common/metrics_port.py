"""The HTTP server of --metrics: GET /metrics in plain text, or by mutual TLS; bounded throughout.

prometheus_client has a server too, without limits. With certificates it does each handshake in the
thread that accepts: a single half-open connection ends all scraping.
"""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from hearth.common.admission import Refusals, peer_address
from hearth.common.certificates import Role
from hearth.common.channels import split_address
from hearth.common.security import Security

# A scrape: the handshake, the request and the answer, each read or written within this.
SCRAPE_SECONDS = 5.0
# Roles that may read metrics: all that call, and the monitor.
_SCRAPERS = (Role.MONITOR, Role.CLIENT, Role.OPERATOR, Role.ROOT)
# Connections at once; more are closed.
_MOST_CONNECTIONS = 16


class MetricsPort:
    """Serves a registry on host:port from its construction to `stop`."""

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        security: Security | None,
        silence_seconds: float = SCRAPE_SECONDS,
    ) -> None:
        """Raises OSError if the address cannot be bound."""
        host, port = split_address(address)
        family, _, _, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]

        class Server(_Server):
            address_family = family

        self._server: _Server = make_server(
            str(where[0]), port, make_wsgi_app(registry), Server, _Handler
        )
        self._server.security = security
        self._server.silence_seconds = silence_seconds
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _Server(WSGIServer):
    """One thread for each connection, up to a small limit."""

    security: Security | None = None
    silence_seconds = SCRAPE_SECONDS
    request_queue_size = 32

    def __init__(self, *arguments: Any) -> None:
        self._slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._refusals = Refusals("the metrics port")
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Binds without the base class's look-up of the host name, which may be slow."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "hearth", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handles a connection in its own thread, or closes it if too many are open."""
        if not self._slots.acquire(blocking=False):
            self._refuse(client_address, f"{_MOST_CONNECTIONS} connections are open")
            self.shutdown_request(request)
            return
        threading.Thread(
            target=self._converse,
            args=(request, client_address),
            name="metrics-scrape",
            daemon=True,
        ).start()

    def _converse(self, connection: socket.socket, client_address: Any) -> None:
        # Reads `connection` when the time is up: TLS replaces the socket.
        watchdog = threading.Timer(3 * self.silence_seconds, lambda: _cut(connection))
        watchdog.daemon = True
        try:
            watchdog.start()
            connection.settimeout(self.silence_seconds)
            if self.security is not None:
                # Made for each scrape, so that renewed certificates are used; scrapes are rare.
                context = self.security.ssl_context()
                secured = context.wrap_socket(connection, server_side=True)
                connection = secured
                problem = self.security.connection_refusal(secured, _SCRAPERS)
                if problem:
                    self._refuse(client_address, problem)
                    return
            self.finish_request(connection, client_address)
        except ssl.SSLError as error:
            self._refuse(client_address, f"the TLS handshake failed: {error.reason or error}")
        except OSError as error:
            self._refuse(client_address, f"no scrape: {error or type(error).__name__}")
        finally:
            watchdog.cancel()
            self.shutdown_request(connection)
            self._slots.release()

    def _refuse(self, client_address: Any, problem: str) -> None:
        self._refusals.note(peer_address(client_address), problem)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing: an error here affects only the scraper."""


class _Handler(WSGIRequestHandler):
    """One request, then the connection is closed; its socket has the server's time limit."""

    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: Any) -> None:
        """Does nothing: scrapes are not logged."""


def _cut(connection: socket.socket) -> None:
    """Shuts a connection down, which ends its reads and writes."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
