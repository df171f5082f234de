"""The HTTP server of --metrics: GET /metrics in plain text, or by mutual TLS; bounded throughout.

prometheus_client has a server too, without limits. With certificates it does each handshake in the
thread that accepts: a single half-open connection ends all scraping.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from hearth.common.certificates import Role
from hearth.common.http_port import SILENCE_SECONDS, Answer, HttpPort, Tls
from hearth.common.security import Security

# Roles that may read metrics: all that call, and the monitor.
_SCRAPERS = (Role.MONITOR, Role.CLIENT, Role.OPERATOR, Role.ROOT)
_CONTEXT_SECONDS = 1.0


class MetricsPort:
    """Serves a registry on host:port from its construction to `stop`."""

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        security: Security | None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """Raises HearthError PORT_IN_USE or BAD_ADDRESS."""

        def scrape(headers: Mapping[str, str]) -> Answer:
            encode, content_type = choose_encoder(headers.get("accept", ""))
            return Answer(encode(registry), content_type=content_type)

        self._http = HttpPort(
            address,
            {"/": scrape, "/metrics": scrape},
            name="metrics",
            tls=_tls(security) if security is not None else None,
            silence_seconds=silence_seconds,
        )
        self.port = self._http.port

    def stop(self) -> None:
        """Closes the port."""
        self._http.stop()


def _tls(security: Security) -> Tls:
    return Tls(_Contexts(security), lambda peer: security.connection_refusal(peer, _SCRAPERS))


class _Contexts:
    """TLS contexts, read from the files once a second at most: certificates are renewed."""

    def __init__(self, security: Security) -> None:
        self._security = security
        self._made = security.ssl_context()
        self._when = time.monotonic()

    def __call__(self) -> ssl.SSLContext:
        now = time.monotonic()
        if now - self._when > _CONTEXT_SECONDS:
            self._made, self._when = self._security.ssl_context(), now
        return self._made
