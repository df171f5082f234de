"""The plaintext port of --health: HTTP for probes, which have no certificates.

GET /livez is 200 while the process answers, GET /readyz while the service is ready, else 503.
Nothing else can be asked: the port may be open to machines that the services refuse.
"""

from __future__ import annotations

from http import HTTPStatus

from hearth.common.http_port import SILENCE_SECONDS, Answer, HttpPort

LIVE = "/livez"
READY = "/readyz"


class HealthPort:
    """Answers on host:port from its construction to `stop`; at first not ready."""

    def __init__(self, address: str, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        """Raises HearthError PORT_IN_USE or BAD_ADDRESS."""
        self._serving = False
        self._http = HttpPort(
            address,
            {LIVE: lambda _: Answer(b"alive\n"), READY: lambda _: self._ready()},
            name="health",
            silence_seconds=min(silence_seconds, SILENCE_SECONDS),
        )
        self.port = self._http.port

    def set_serving(self, serving: bool) -> None:
        """Sets whether the service is ready."""
        self._serving = serving

    def stop(self) -> None:
        """Closes the port."""
        self._http.stop()

    def _ready(self) -> Answer:
        if self._serving:
            return Answer(b"ready\n")
        return Answer(b"not ready\n", HTTPStatus.SERVICE_UNAVAILABLE)
