"""Meshes of one process for tests: lanes between threads, over loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from hearth import _native


def connect(ranks: int) -> list[list[socket.socket | None]]:
    """A TCP connection over loopback between every two ranks: [rank][peer]."""
    ends: list[list[socket.socket | None]] = [[None] * ranks for _ in range(ranks)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for a in range(ranks):
            for b in range(a + 1, ranks):
                ends[a][b] = socket.create_connection(listener.getsockname())
                ends[b][a] = listener.accept()[0]
    return ends


def make_lane(
    ends: list[socket.socket | None],
    wire: str,
    direct_bytes: int,
    deadline: float = 20.0,
    cipher: str = "plain",
) -> _native.MeshLane:
    rank = ends.index(None)
    sockets = [-1 if end is None else end.detach() for end in ends]
    return _native.MeshLane(
        rank=rank,
        sockets=sockets,
        wire=wire,
        deadline_seconds=deadline,
        direct_bytes=direct_bytes,
        cipher=cipher,
        keys=[(frame_key(rank, peer), frame_key(peer, rank)) for peer in range(len(ends))],
    )


def frame_key(sender: int, receiver: int) -> bytes:
    return bytes([sender, receiver]) * 16


def on_all(lanes: list[_native.MeshLane], work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(rank: int) -> None:
        try:
            work(rank)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(len(lanes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    if failures:
        raise failures[0]
