"""Measures a mesh of two ranks over the loopback, and prints its costs; run by a test.

    python tests/shaped_link.py

The caller shapes the loopback of a network namespace before.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

from hearth import _native
from hearth.common.mesh import measure


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    dialled = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    keys = (b"\1" * 32, b"\2" * 32)
    lanes = [
        _native.MeshLane(
            rank=rank,
            sockets=[-1, each.detach()] if rank == 0 else [each.detach(), -1],
            wire="f32",
            deadline_seconds=30.0,
            cipher="plain",
            keys=[keys if rank == 0 else keys[::-1]] * 2,
        )
        for rank, each in enumerate((dialled, accepted))
    ]
    with ThreadPoolExecutor(2) as threads:
        costs = list(threads.map(lambda lane: measure(lane, 30.0), lanes))
    assert costs[0] == costs[1], costs
    print(costs[0].latency_seconds, costs[0].bytes_per_second)


if __name__ == "__main__":
    main()
