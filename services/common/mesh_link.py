"""A connection between two ranks after its handshake."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from hearth.common import system
from hearth.common.errors import HearthError, Reason
from hearth.common.mesh_handshake import Handshake

# A connection fails when data is not acknowledged for this long: for example when the cable between
# two workers breaks, while the root still reaches both. (The root notices a lost worker sooner, by
# gRPC.) A rank that computes for this long while its buffers are full looks the same.
_UNANSWERED_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Link:
    """An authenticated connection, and its handshake."""

    connection: socket.socket
    handshake: Handshake


def settle(connection: socket.socket) -> None:
    """Prepares a socket for the core: blocking, and failing when the peer vanished silently."""
    connection.settimeout(None)
    system.keep_alive(connection, _UNANSWERED_SECONDS)


def unreachable(rank: int, problem: str) -> HearthError:
    """Error for a rank that cannot be reached over the mesh."""
    return HearthError(
        Reason.PEER_LOST,
        f"rank {rank} cannot be reached over the mesh ({problem}): check that the workers can "
        "reach each other's mesh ports, or use `--lane grpc`, which needs none",
        {"rank": rank},
    )
