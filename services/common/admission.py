"""Logs connections and calls refused at a port: at a bounded rate, with the peer's address.

gRPC does not report failed TLS handshakes. It does call the credentials' fetcher when a handshake
begins, and the process's own descriptors then include the new connection.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hearth.common.channels import SILENCE_SECONDS, format_address

log = logging.getLogger(__name__)

# Lines per window, one per host and cause: a scanner cannot fill the log.
MAX_LINES = 20
WINDOW_SECONDS = 60.0
_LOOK_SECONDS = 0.25
# Rate and burst at which new connections are inspected; in a flood, only some are.
_LOOKS_A_SECOND = 10.0
_MAX_LOOKS = 20.0

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


class Handshakes:
    """Watches a gRPC server's TLS connections from outside; logs failed handshakes.

    A young connection that closes without a call counts as a failed handshake. gRPC itself closes
    connections whose handshake is not done within `seconds`.
    """

    def __init__(self, refusals: Refusals, seconds: float = SILENCE_SECONDS) -> None:
        self._refusals = refusals
        self._seconds = seconds
        self._port = 0
        self._changed = threading.Condition()
        # Open connections already inspected; among them those whose handshake may still fail, each
        # with its start and first bytes.
        self._known: set[Peer] = set()
        self._young: dict[Peer, tuple[float, bytes]] = {}
        # Inspections available (a token bucket), and the time of that count.
        self._looks = _MAX_LOOKS
        self._looked = time.monotonic()
        self._stopped = False
        self._thread = threading.Thread(target=self._watch, name="tls-watch", daemon=True)

    def start(self, port: int) -> None:
        """Starts watching the connections on this port."""
        self._port = port
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def began(self) -> None:
        """Notes that a handshake has begun. Called by gRPC: must never raise or block."""
        try:
            now = time.monotonic()
            # An inspection takes milliseconds with hundreds of connections.
            earned = self._looks + (now - self._looked) * _LOOKS_A_SECOND
            self._looks, self._looked = min(_MAX_LOOKS, earned), now
            if self._looks < 1:
                return
            self._looks -= 1
            found = connections(self._port, peek=True)
            with self._changed:
                self._known &= found.keys()
                for peer, first in found.items():
                    if peer not in self._known:
                        self._known.add(peer)
                        self._young[peer] = (now, first)
                self._changed.notify_all()
        except Exception:
            log.exception("could not inspect a connection")

    def called(self, peer: Peer) -> None:
        """Notes that this connection has made a call, so its handshake succeeded."""
        if peer in self._young or peer not in self._known:
            with self._changed:
                self._young.pop(peer, None)
                self._known.add(peer)

    def _watch(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._young)
                if self._stopped:
                    return
            time.sleep(_LOOK_SECONDS)
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        with self._changed:
            still = set(connections(self._port))
            gone = [peer for peer in self._young if peer not in still]
            failed = {peer: self._young.pop(peer) for peer in gone}
            self._known &= still
            for peer, (since, _) in list(self._young.items()):
                if now - since > self._seconds + 1:
                    del self._young[peer]  # gRPC has accepted it
        for peer, (since, first) in failed.items():
            self._refusals.note(peer, _cause(first, now - since, self._seconds))


def _cause(first: bytes, seconds: float, limit: float = SILENCE_SECONDS) -> str:
    """The probable cause of a failed handshake that began with these bytes."""
    if seconds > 0.9 * limit:
        return f"the TLS handshake was not done within {limit:g} s"
    if first.startswith(b"PRI"):
        return "it spoke gRPC without TLS: it needs --tls"
    if first and not first.startswith(b"\x16\x03"):
        return "it did not speak TLS"
    return (
        "the TLS handshake failed: it has no certificate of this cluster's CA, does not trust "
        "ours, or went away"
    )


def connections(port: int, peek: bool = False) -> dict[Peer, bytes]:
    """Peers connected to this process's `port`; with `peek`, also the first bytes not read yet.

    Empty if the system does not list a process's descriptors (/proc/self/fd, /dev/fd).
    """
    folder = next((f for f in (Path("/proc/self/fd"), Path("/dev/fd")) if f.is_dir()), None)
    found: dict[Peer, bytes] = {}
    for entry in folder.iterdir() if folder is not None else ():
        with suppress(OSError, ValueError):
            descriptor = int(entry.name)
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                if connection.getsockname()[1] != port:
                    continue
                peer = peer_address(connection.getpeername())
                first = b""
                if peek:
                    with suppress(OSError):
                        first = connection.recv(3, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                found[peer] = first
    return found


def _plain(host: str) -> str:
    """Removes the prefix of an IPv4 address that a dual-stack socket reported as IPv6."""
    return host.removeprefix("::ffff:") if "." in host else host
