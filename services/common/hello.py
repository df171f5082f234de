"""A wait for the opening of a TLS connection, which costs next to nothing meanwhile."""

from __future__ import annotations

import asyncio
import socket

from hearth.common import system

# A record's header (RFC 8446, section 5.1): type, version, length.
_HEADER = 5
_HANDSHAKE = 22
_MOST = 1 << 14
# Between two looks, where readiness came before the bytes, as where the system does not wait for a
# number of them.
LOOK_SECONDS = 0.05


def missing(connection: socket.socket) -> int:
    """Bytes that must have come until the first TLS record of a connection is whole; 0 if it is.

    Leaves them unread. Raises BlockingIOError where nothing has come, ConnectionResetError where
    the peer has left, and ConnectionError where it sent something else.
    """
    seen = connection.recv(_HEADER + _MOST, socket.MSG_PEEK)
    if not seen:
        raise ConnectionResetError("it has left")
    if seen[0] != _HANDSHAKE:
        raise ConnectionError("it does not speak TLS")
    if len(seen) < _HEADER:
        return _HEADER
    wanted = _HEADER + int.from_bytes(seen[3:5], "big")
    if wanted > _HEADER + _MOST:
        raise ConnectionError("its TLS record is too long")
    return 0 if len(seen) >= wanted else wanted


async def hello(connection: socket.socket) -> None:
    """Waits until the first TLS record of a connection is whole, and leaves it unread.

    Raises ConnectionError: the peer sent something else, or has left.
    """
    wanted = _HEADER
    try:
        while True:
            await _readable(connection, wanted)
            before, wanted = wanted, missing(connection)
            if not wanted:
                return
            if wanted == before:
                if system.has_left(connection):
                    raise ConnectionResetError("it has left")
                await asyncio.sleep(LOOK_SECONDS)
    finally:
        system.wake_at(connection, 1)


async def _readable(connection: socket.socket, wanted: int) -> None:
    """Waits for `wanted` bytes, or for fewer where no more can come."""
    system.wake_at(connection, wanted)
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
