"""Connects and authenticates the ranks of a mesh; afterwards the core sends its frames.

The handshake has fixed sizes, and each side proves the session key before the other reads on:

    listener -> dialler   32 bytes  nonce A
    dialler  -> listener  80 bytes  magic, own rank, peer's rank (u32 each), nonce B, proof
    listener -> dialler   32 bytes  proof

A proof is HMAC-SHA256(session key, role | A | B | ranks). Every epoch has its own key,
sent over gRPC, so a connection of an older epoch cannot pass.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from hearth import _native
from hearth.common.admission import Peer, Refusals, peer_address
from hearth.common.channels import split_address
from hearth.common.errors import HearthError, Reason
from hearth.common.link_costs import LinkCosts

KEY_BYTES = 32
_MAGIC = b"HRTHMSH1"
_HELLO = struct.Struct("<8sII32s32s")
# A dialler that sends nothing for this long is dropped, because it holds a thread.
_HANDSHAKE_SECONDS = 2.0
# Concurrent handshakes, of all hosts and of one; more are closed, and ranks try again.
_MAX_HANDSHAKES = 32
_MAX_HANDSHAKES_PER_HOST = 16
_RETRY_SECONDS = 0.05
# A connection fails when data is not acknowledged for this long: for example when the cable between
# two workers breaks, while the root still reaches both. (The root notices a lost worker sooner, by
# gRPC.) A rank that computes for this long while its buffers are full looks the same.
_UNANSWERED_SECONDS = 20
# More bytes than any sum has.
_LARGEST_SUM = 1 << 40


class MeshListener:
    """Accepts connections of lower ranks. A node is in one mesh at a time, its stage's."""

    def __init__(self, host: str, port: int = 0) -> None:
        """Listens on host:port, 0 for any free one. Raises HearthError PORT_IN_USE."""
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # "::" includes IPv4, as in gRPC.
            both = host == "::" and socket.has_dualstack_ipv6()
            self._socket = socket.create_server(
                (host, port), family=family, backlog=64, dualstack_ipv6=both
            )
        except (OSError, UnicodeError) as error:
            problem = f"cannot listen for the mesh on {host}:{port}: {error}"
            raise HearthError(Reason.PORT_IN_USE, problem) from None
        self.port = int(self._socket.getsockname()[1])
        self._changed = threading.Condition()
        # The mesh being opened: its key, the own rank, and the connected ranks.
        self._key: bytes | None = None
        self._rank = 0
        self._arrived: dict[int, socket.socket] = {}
        # Handshakes in progress by host; hosts without one are removed.
        self._greeting: dict[str, int] = {}
        self._refusals = Refusals("the mesh port")
        self._thread = threading.Thread(target=self._accept, name="mesh-listener", daemon=True)
        self._thread.start()

    def expect(self, key: bytes, rank: int) -> None:
        """Accepts lower ranks that prove `key` from now on; closes earlier connections."""
        with self._changed:
            self._drop()
            self._key, self._rank = key, rank
            self._changed.notify_all()

    def take(self, deadline: float) -> dict[int, socket.socket]:
        """The connections of all lower ranks, by rank; the caller owns them.

        deadline: of time.monotonic(). Raises HearthError PEER_LOST naming a missing rank.
        """
        with self._changed:
            while len(self._arrived) < self._rank:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    absent = min(set(range(self._rank)) - set(self._arrived))
                    raise unreachable(absent, "it did not connect in time")
            arrived, self._arrived = self._arrived, {}
            self._key = None
            return arrived

    def close(self) -> None:
        """Closes the listener."""
        # Closing alone does not wake up a thread in accept().
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._changed:
            self._drop()

    def _drop(self) -> None:
        for connection in self._arrived.values():
            connection.close()
        self._arrived = {}
        self._key = None

    def _accept(self) -> None:
        while True:
            try:
                connection, where = self._socket.accept()
            except OSError:
                if self._socket.fileno() < 0:
                    return
                time.sleep(_RETRY_SECONDS)  # most likely no descriptors left
                continue
            peer = peer_address(where)
            if not self._enter(peer[0]):
                self._refusals.note(peer, "too many handshakes at once")
                connection.close()
                continue
            threading.Thread(
                target=self._greet, args=(connection, peer), name="mesh-greet", daemon=True
            ).start()

    def _enter(self, host: str) -> bool:
        with self._changed:
            if sum(self._greeting.values()) >= _MAX_HANDSHAKES:
                return False
            handshakes = self._greeting.get(host, 0)
            if handshakes >= _MAX_HANDSHAKES_PER_HOST:
                return False
            self._greeting[host] = handshakes + 1
            return True

    def _leave(self, host: str) -> None:
        with self._changed:
            self._greeting[host] -= 1
            if not self._greeting[host]:
                del self._greeting[host]

    def _greet(self, connection: socket.socket, peer: Peer) -> None:
        try:
            connection.settimeout(_HANDSHAKE_SECONDS)
            problem = self._admit(connection)
        except OSError as error:
            problem = f"no handshake: {error}"
        except BaseException:
            connection.close()
            raise
        finally:
            self._leave(peer[0])
        if problem:
            connection.close()
            self._refusals.note(peer, problem)

    def _admit(self, connection: socket.socket) -> str:
        """The reason to refuse the connection; empty if it was accepted."""
        ours = secrets.token_bytes(32)
        connection.sendall(ours)
        magic, rank, peer, theirs, proof = _HELLO.unpack(_receive(connection, _HELLO.size))
        if magic != _MAGIC:
            return "it does not speak the mesh's handshake"
        with self._changed:
            # A dialler may learn of the mesh a moment before this rank.
            self._changed.wait_for(lambda: self._key is not None, _HANDSHAKE_SECONDS)
            key = self._key
            if key is None:
                return "no mesh is being opened"
            if not hmac.compare_digest(proof, _proof(key, b"dial", ours, theirs, rank, peer)):
                return "it did not prove the epoch's key"
            if peer != self._rank or rank >= self._rank:
                return f"rank {rank} dialled rank {peer}, and this is rank {self._rank}"
            if rank in self._arrived:
                return f"rank {rank} is connected already"
            connection.sendall(_proof(key, b"accept", ours, theirs, rank, peer))
            _settle(connection)
            self._arrived[rank] = connection
            self._changed.notify_all()
        return ""


def connect(address: str, key: bytes, rank: int, peer: int, deadline: float) -> socket.socket:
    """Connects to rank `peer` at host:port; retries until `deadline` (time.monotonic()).

    Raises HearthError PEER_LOST naming the rank.
    """
    host, port = split_address(address)
    problem = "there was no time"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((host, port), timeout=min(left, 5.0))
            try:
                _prove(connection, key, rank, peer)
            except BaseException:
                connection.close()
                raise
            _settle(connection)
            return connection
        except (OSError, UnicodeError) as error:
            problem = str(error) or type(error).__name__
        time.sleep(_RETRY_SECONDS)
    raise unreachable(peer, f"its mesh address {address}: {problem}")


def connect_all(
    addresses: list[str],
    key: bytes,
    rank: int,
    lower: Callable[[float], dict[int, socket.socket]],
    seconds: float,
) -> list[int]:
    """Descriptors of the connections to every rank, -1 for the own rank; the caller owns them.

    lower: returns the connections of the lower ranks, which dial this one.
    Raises HearthError PEER_LOST.
    """
    deadline = time.monotonic() + seconds
    connections: dict[int, socket.socket] = {}
    try:
        for peer in range(rank + 1, len(addresses)):
            connections[peer] = connect(addresses[peer], key, rank, peer, deadline)
        connections.update(lower(deadline))
    except BaseException:
        for connection in connections.values():
            connection.close()
        raise
    return [-1 if r == rank else connections[r].detach() for r in range(len(addresses))]


def measure(lane: _native.MeshLane, seconds: float) -> LinkCosts:
    """Measures the links together with all ranks, and chooses how syncs travel.

    Raises HearthError PEER_LOST naming the rank that did not take part.
    """
    try:
        costs = lane.measure(seconds)
    except _native.LaneError as error:
        problem = f"the mesh broke while its links were measured: {error}"
        raise HearthError(Reason.PEER_LOST, problem, {"rank": error.rank}) from None
    return LinkCosts(
        latency_seconds=costs.latency_ns / 1e9,
        bytes_per_second=1e12 / max(1, costs.byte_ps),
        direct_bytes=lane.direct_bytes if lane.direct_bytes <= _LARGEST_SUM else None,
    )


def unreachable(rank: int, problem: str) -> HearthError:
    """Error for a rank that cannot be reached over the mesh."""
    return HearthError(
        Reason.PEER_LOST,
        f"rank {rank} cannot be reached over the mesh ({problem}): check that the workers can "
        "reach each other's mesh ports, or use `--lane grpc`, which needs none",
        {"rank": rank},
    )


def _prove(connection: socket.socket, key: bytes, rank: int, peer: int) -> None:
    connection.settimeout(_HANDSHAKE_SECONDS * 2)
    theirs = _receive(connection, 32)
    ours = secrets.token_bytes(32)
    proof = _proof(key, b"dial", theirs, ours, rank, peer)
    connection.sendall(_HELLO.pack(_MAGIC, rank, peer, ours, proof))
    answer = _receive(connection, 32)
    if not hmac.compare_digest(answer, _proof(key, b"accept", theirs, ours, rank, peer)):
        raise OSError("it did not prove the session key")


def _proof(key: bytes, role: bytes, listener: bytes, dialler: bytes, rank: int, peer: int) -> bytes:
    text = role + listener + dialler + struct.pack("<II", rank, peer)
    return hmac.digest(key, text, "sha256")


def _receive(connection: socket.socket, size: int) -> bytes:
    """Reads exactly `size` bytes within the handshake's time limit. Raises OSError."""
    deadline = time.monotonic() + (connection.gettimeout() or _HANDSHAKE_SECONDS)
    data = b""
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the handshake took too long")
        connection.settimeout(left)
        part = connection.recv(size - len(data))
        if not part:
            raise OSError("it closed the connection during the handshake")
        data += part
    return data


def _settle(connection: socket.socket) -> None:
    """Prepares a socket for the core: blocking, and failing when the peer vanished silently."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Systems other than Linux keep their default times.
    for name, value in (
        ("TCP_KEEPIDLE", _UNANSWERED_SECONDS // 4),
        ("TCP_KEEPINTVL", _UNANSWERED_SECONDS // 4),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _UNANSWERED_SECONDS * 1000),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
