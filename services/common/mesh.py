"""Connects the ranks of a mesh to each other; afterwards the core sends its frames."""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hearth import _native
from hearth.common import system
from hearth.common.channels import split_address
from hearth.common.errors import HearthError, Reason
from hearth.common.link_costs import LinkCosts
from hearth.common.mesh_handshake import NONCE_BYTES, PROOF_BYTES, Handshake
from hearth.common.mesh_link import Link, settle, unreachable

# A rank that is reached answers within this time, or is dialled again.
_ANSWER_SECONDS = 4.0
_RETRY_SECONDS = 0.05
# A try to connect: time for a lost packet to be sent again.
_DIAL_SECONDS = 2.0
# In struct tcp_info: tcpi_rtt, tcpi_min_rtt (Linux 4.6) and the end of that; microseconds.
_RTT_OFFSET = 68
_MIN_RTT_OFFSET = 148
_TCP_INFO_BYTES = 152
_NO_RTT = (1 << 32) - 1
# More bytes than any sum has.
_LARGEST_SUM = 1 << 40


class Connections(NamedTuple):
    """Descriptors and frame keys (to send, to receive) by rank.

    -1 and empty for the own rank, and where there is no connection.
    """

    sockets: list[int]
    keys: list[tuple[bytes, bytes]]


def connect(
    address: str,
    key: bytes,
    rank: int,
    peer: int,
    deadline: float,
    stop: threading.Event | None = None,
) -> Link:
    """Connects to rank `peer` at host:port; retries until `deadline` (time.monotonic()).

    stop: set to end the tries sooner. Raises HearthError PEER_LOST naming the rank.
    """
    host, port = split_address(address)
    stop = stop or threading.Event()
    problem = "there was no time"
    while (left := deadline - time.monotonic()) > 0 and not stop.is_set():
        try:
            timeout = min(left, _DIAL_SECONDS)
            connection = socket.create_connection((host, port), timeout=timeout)
            try:
                handshake = _prove(connection, key, rank, peer)
                settle(connection)
            except BaseException:
                connection.close()
                raise
            return Link(connection, handshake)
        except (OSError, UnicodeError) as error:
            problem = str(error) or type(error).__name__
        stop.wait(_RETRY_SECONDS)
    raise unreachable(peer, f"its mesh address {address}: {problem}")


def connect_all(
    addresses: list[str],
    key: bytes,
    rank: int,
    lower: Callable[[float], dict[int, Link]],
    seconds: float,
    cipher: str,
    stop: threading.Event | None = None,
    peers: Collection[int] | None = None,
) -> Connections:
    """Connections to every rank, or to `peers`; the caller owns the descriptors.

    lower: returns the connections of the lower ranks, which dial this one. cipher: a name of
    `_native.mesh_ciphers`, or "plain". stop: see `connect`. Raises HearthError PEER_LOST.
    """
    deadline = time.monotonic() + seconds
    links: dict[int, Link] = {}
    try:
        for peer in range(rank + 1, len(addresses)):
            if peers is not None and peer not in peers:
                continue
            links[peer] = connect(addresses[peer], key, rank, peer, deadline, stop)
        links.update(lower(deadline))
    except BaseException:
        for link in links.values():
            link.connection.close()
        raise
    connections = Connections([], [])
    for peer in range(len(addresses)):
        if peer not in links:
            connections.sockets.append(-1)
            connections.keys.append((b"", b""))
            continue
        link = links[peer]
        dialled, listened = link.handshake.frame_keys(key, cipher)
        connections.sockets.append(link.connection.detach())
        connections.keys.append((dialled, listened) if peer > rank else (listened, dialled))
    return connections


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


def stage_link(
    connections: Connections, rank: int, peer: int, deadline_seconds: float, cipher: str
) -> _native.StageLink:
    """A connection on which activations go from one of two stages' ranks to the other."""
    # A peer that computes for long takes nothing meanwhile: that is not a broken connection. The
    # receiver, which has nothing under way, finds out about that.
    if peer > rank:
        with _borrowed(connections.sockets[peer]) as connection:
            system.allow_slow_reader(connection)
    return _native.StageLink(
        rank=rank,
        peer=peer,
        socket=connections.sockets[peer],
        deadline_seconds=deadline_seconds,
        cipher=cipher,
        keys=connections.keys[peer],
    )


def round_trip(descriptor: int) -> float:
    """Shortest round trip of a TCP connection in seconds, by the kernel; 0 where it is not known.

    The fields are those of struct tcp_info in linux/tcp.h.
    """
    try:
        with _borrowed(descriptor) as connection:
            info = system.tcp_info(connection, _TCP_INFO_BYTES)
    except (OSError, ValueError):  # closed, or never open
        return 0.0
    offset = _MIN_RTT_OFFSET if len(info) >= _TCP_INFO_BYTES else _RTT_OFFSET
    if len(info) < offset + 4:
        return 0.0
    microseconds: int = struct.unpack_from("=I", info, offset)[0]
    return microseconds / 1e6 if microseconds < _NO_RTT else 0.0


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """A socket that stays its owner's, who goes on with its descriptor.

    Raises OSError, ValueError.
    """
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def _prove(connection: socket.socket, key: bytes, rank: int, peer: int) -> Handshake:
    deadline = time.monotonic() + _ANSWER_SECONDS
    listener_nonce = _receive(connection, NONCE_BYTES, deadline)
    handshake = Handshake(rank, peer, secrets.token_bytes(NONCE_BYTES), listener_nonce)
    connection.sendall(handshake.hello(key))
    answer = _receive(connection, PROOF_BYTES, deadline)
    if not hmac.compare_digest(answer, handshake.answer(key)):
        raise OSError("it did not prove the epoch's key")
    return handshake


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    """Reads exactly `size` bytes until `deadline`. Raises OSError."""
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
