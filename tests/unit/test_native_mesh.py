"""The mesh lane over real sockets: sums, bits, algorithms, and peers that misbehave.

What it measures and chooses is in test_mesh_costs.py.
"""

import socket
import struct
import threading

import numpy as np
import pytest
from meshes import connect, frame_key, make_lane, on_all
from numpy.typing import NDArray

from hearth import _native


@pytest.mark.parametrize("direct_bytes", [0, 1 << 30], ids=["scattered", "direct"])
@pytest.mark.parametrize("wire", ["f32", "f16", "q80"])
@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(1, 32), (1, 256), (3, 96), (64, 2048)])
def test_all_ranks_have_the_same_sum(
    shape: tuple[int, int], ranks: int, wire: str, direct_bytes: int
) -> None:
    rng = np.random.default_rng(ranks)
    steps = [[rng.normal(size=shape).astype(np.float32) for _ in range(ranks)] for _ in range(3)]
    expected = [np.sum(np.stack(parts), axis=0, dtype=np.float64) for parts in steps]
    results: list[list[NDArray[np.float32]]] = [[] for _ in range(ranks)]
    lanes = [make_lane(ends, wire, direct_bytes) for ends in connect(ranks)]

    def work(rank: int) -> None:
        lanes[rank].begin(7)
        for parts in steps:
            x = parts[rank].copy()
            lanes[rank].all_reduce(x)
            results[rank].append(x)

    on_all(lanes, work)
    # What one part, or the sum, loses on the wire: half a step of its type, times its magnitude.
    relative = {"f32": 2.0**-22, "f16": 2.0**-11, "q80": 0.5 / 127}[wire]
    bound = relative * (ranks + 1) * max(float(np.abs(part).max()) for part in expected) * 1.5
    for step, total in enumerate(expected):
        for rank in range(ranks):
            np.testing.assert_array_equal(results[rank][step], results[0][step])
        np.testing.assert_allclose(results[0][step], total, atol=max(bound, 1e-5))
    assert sum(lane.sent_bytes for lane in lanes) == sum(lane.received_bytes for lane in lanes) > 0


def test_f32_adds_in_rank_order() -> None:
    """Numbers of very different size show the order: both algorithms keep it."""
    parts = [np.full((1, 64), value, np.float32) for value in (1e8, 1.0, -1e8)]
    expected = (parts[0] + parts[1]) + parts[2]
    for direct_bytes in (0, 1 << 30):
        lanes = [make_lane(ends, "f32", direct_bytes) for ends in connect(3)]
        got = [part.copy() for part in parts]
        on_all(lanes, lambda rank: lanes[rank].all_reduce(got[rank]))  # noqa: B023
        for each in got:
            np.testing.assert_array_equal(each, expected)


def test_a_peer_that_closes_is_named() -> None:
    ends = connect(3)
    for end in ends[2]:
        if end is not None:
            end.close()
    lane = make_lane(ends[0], "f32", 1 << 30)
    with pytest.raises(_native.LaneError, match="rank 2 is lost") as error:
        lane.all_reduce(np.zeros((1, 64), np.float32))
    assert error.value.rank == 2


def test_a_silent_peer_is_named_within_the_deadline() -> None:
    ends = connect(2)
    lane = make_lane(ends[0], "f32", 1 << 30, deadline=0.3)
    with pytest.raises(_native.LaneError, match=r"rank 1 did not answer within 0\.3"):
        lane.all_reduce(np.zeros((1, 64), np.float32))


def test_abort_ends_a_sync() -> None:
    ends = connect(2)
    lane = make_lane(ends[0], "f32", 1 << 30, deadline=30)
    threading.Timer(0.2, lane.abort).start()
    with pytest.raises(_native.LaneError, match="told to give the step up"):
        lane.all_reduce(np.zeros((1, 64), np.float32))


def test_closing_ends_the_connections() -> None:
    ends = connect(2)
    peer = ends[1][0]
    assert peer is not None
    lane = make_lane(ends[0], "f32", 1 << 30)
    lane.close()
    assert peer.recv(1) == b""
    with pytest.raises(RuntimeError, match="the lane is closed"):
        lane.all_reduce(np.zeros((1, 64), np.float32))
    lane.close()
    peer.close()


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<4I", 0x48525448, 1, 0, 0xFFFFFFFF),
        struct.pack("<4I", 0x48525448, 2, 0, 256),
        struct.pack("<4I", 0x48525448, 1, 1, 256),
        b"GET / HTTP/1.1\r\n",
    ],
    ids=["length", "step", "index", "stranger"],
)
def test_a_frame_that_is_not_due_is_refused(header: bytes) -> None:
    ends = connect(2)
    peer = ends[1][0]
    assert peer is not None
    lane = make_lane(ends[0], "f32", 1 << 30)
    lane.begin(1)
    peer.sendall(header + bytes(256))
    with pytest.raises(_native.LaneError, match="rank 1 is out of step"):
        lane.all_reduce(np.zeros((1, 64), np.float32))
    peer.close()


def test_lanes_that_cannot_be() -> None:
    def make(rank: int, sockets: list[int], wire: str = "f32", deadline: float = 1.0) -> None:
        _native.MeshLane(
            rank=rank,
            sockets=sockets,
            wire=wire,
            deadline_seconds=deadline,
            cipher="plain",
            keys=[(frame_key(0, 1), frame_key(1, 0))] * len(sockets),
        )

    for rank, sockets in [(0, [-1]), (2, [-1, -1]), (0, [-1, -1]), (1, [-1, -1])]:
        with pytest.raises(ValueError, match="mesh:"):
            make(rank, sockets)
    # Of our own, not just any number: a lane closes the sockets that it is given.
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(ValueError, match="sync type"):  # before it takes them
            make(0, [-1, left.fileno()], wire="q40")
        with pytest.raises(ValueError, match="deadline"):
            make(0, [-1, left.detach()], deadline=float("nan"))
        assert right.recv(1) == b""
