"""Logs connections and calls refused at a port: at a bounded rate, with the peer's address."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from hearth.common.channels import format_address

log = logging.getLogger(__name__)

# Lines per window, one per host and cause: a scanner cannot fill the log.
MAX_LINES = 20
WINDOW_SECONDS = 60.0

# ("192.168.1.7", 40950)
Peer = tuple[str, int]


class Refusals:
    """Logs refused peers. Thread-safe; holds at most MAX_LINES entries."""

    def __init__(self, port: str, clock: Callable[[], float] = time.monotonic) -> None:
        """port: name of the port in log lines, such as "the worker's port"."""
        self._port = port
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = float("-inf")
        self._logged: set[tuple[str, str]] = set()
        self._skipped = 0

    def note(self, peer: Peer, problem: str) -> None:
        """Logs that `peer` was refused because of `problem`, unless the limit is reached."""
        host, number = peer
        with self._lock:
            now = self._clock()
            if now - self._begun >= WINDOW_SECONDS:
                self._begun = now
                self._logged.clear()
            if (host, problem) in self._logged or len(self._logged) >= MAX_LINES:
                self._skipped += 1
                return
            self._logged.add((host, problem))
            skipped, self._skipped = self._skipped, 0
        more = f" ({skipped} more refused since the last line)" if skipped else ""
        where = format_address(host, number)
        log.warning("refused %s at %s: %s%s", where, self._port, problem, more)


def peer_of(text: str) -> Peer:
    """Parses gRPC's name of a peer: "ipv4:10.0.0.1:5" or "ipv6:[::1]:5", percent-encoded."""
    kind, _, rest = unquote(text).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return text, 0
    return _plain(host.strip("[]")), int(port)


def peer_address(address: tuple[Any, ...]) -> Peer:
    """Converts the address that a socket returns for its peer."""
    return _plain(str(address[0])), int(address[1])


def _plain(host: str) -> str:
    """Removes the prefix of an IPv4 address that a dual-stack socket reported as IPv6."""
    return host.removeprefix("::ffff:") if "." in host else host
