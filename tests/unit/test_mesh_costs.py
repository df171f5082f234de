"""The mesh's choice between direct and scattered sums: as a pure function, and as measured."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshes import connect, make_lane, on_all

from hearth import _native

RANKS = st.integers(2, 1024)
WIRES = st.sampled_from(["f32", "f16", "q80"])
MOST_LATENCY_NS, MOST_PS = 10**10, 10**9
# Beyond the limits too: a rank may say anything.
LATENCIES = st.integers(0, 2 * MOST_LATENCY_NS) | st.integers(0, 2**64 - 1)
PICOSECONDS = st.integers(0, 2 * MOST_PS) | st.integers(0, 2**64 - 1)
COSTS = st.builds(
    lambda latency, byte, add: _native.LinkCosts(latency_ns=latency, byte_ps=byte, add_ps=add),
    LATENCIES,
    PICOSECONDS,
    PICOSECONDS,
)


def clamped(costs: _native.LinkCosts) -> tuple[int, int, int]:
    """Latency (ps), each byte, each byte added, within the limits."""
    return (
        min(max(costs.latency_ns, 1), MOST_LATENCY_NS) * 1000,
        min(max(costs.byte_ps, 1), MOST_PS),
        min(max(costs.add_ps, 1), MOST_PS),
    )


def direct(n: int, size: int, costs: _native.LinkCosts) -> Fraction:
    """Picoseconds, by the model of mesh_costs.h."""
    latency, byte, add = clamped(costs)
    return Fraction(latency + (n - 1) * size * (byte + add))


def scattered(n: int, size: int, costs: _native.LinkCosts) -> Fraction:
    latency, byte, add = clamped(costs)
    return 2 * latency + Fraction((n - 1) * size * (2 * byte + add), n)


@given(RANKS, WIRES, COSTS)
def test_the_way_chosen_is_the_cheaper_one(ranks: int, wire: str, costs: _native.LinkCosts) -> None:
    most = _native.direct_bytes(ranks, wire, costs)
    if ranks == 2 and wire != "f32":
        assert most == 2**64 - 1
        return
    assert direct(ranks, most, costs) <= scattered(ranks, most, costs)
    assert direct(ranks, most + 1, costs) > scattered(ranks, most + 1, costs)


@given(RANKS, WIRES, COSTS, st.integers(0, 10**10), st.integers(0, 10**9), st.integers(0, 10**9))
def test_it_goes_one_way_with_every_cost(
    ranks: int, wire: str, costs: _native.LinkCosts, latency: int, byte: int, add: int
) -> None:
    def chosen(n: int, latency_ns: int, byte_ps: int, add_ps: int) -> int:
        limit = 2**64 - 1
        return _native.direct_bytes(
            n,
            wire,
            _native.LinkCosts(
                latency_ns=min(latency_ns, limit),
                byte_ps=min(byte_ps, limit),
                add_ps=min(add_ps, limit),
            ),
        )

    now = (costs.latency_ns, costs.byte_ps, costs.add_ps)
    base = chosen(ranks, *now)
    assert chosen(ranks, now[0] + latency, now[1], now[2]) >= base
    assert chosen(ranks, now[0], now[1] + byte, now[2]) <= base
    assert chosen(ranks, now[0], now[1], now[2] + add) <= base
    if ranks < 1024:
        assert chosen(ranks + 1, *now) <= base


@pytest.mark.parametrize("ranks", [0, 1, 1025])
def test_no_choice_for_what_is_no_mesh(ranks: int) -> None:
    costs = _native.LinkCosts(latency_ns=1, byte_ps=1, add_ps=1)
    with pytest.raises(ValueError, match="2 to 1024"):
        _native.direct_bytes(ranks, "f32", costs)


class SlowWire:
    """Between two sockets; what comes out of `near` passes at `rate` bytes a second at most."""

    def __init__(self, near: socket.socket, far: socket.socket, rate: float) -> None:
        self._ends = (near, far)
        self._threads = [
            threading.Thread(target=self._carry, args=(near, far, 1 / rate)),
            threading.Thread(target=self._carry, args=(far, near, 0.0)),
        ]
        for thread in self._threads:
            thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, seconds: float) -> None:
        while data := source.recv(4096):
            time.sleep(len(data) * seconds)  # the wire itself: nobody waits for a moment to come
            with suppress(OSError):  # the other rank may be done
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        for end in self._ends:
            end.close()


def measure_all(lanes: list[_native.MeshLane]) -> list[_native.LinkCosts]:
    costs: dict[int, _native.LinkCosts] = {}

    def work(rank: int) -> None:
        costs[rank] = lanes[rank].measure(60.0)

    on_all(lanes, work)
    return [costs[rank] for rank in range(len(lanes))]


@pytest.mark.parametrize("wire", ["f32", "f16", "q80"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_ranks_measure_the_same(ranks: int, wire: str) -> None:
    lanes = [make_lane(ends, wire, 0) for ends in connect(ranks)]
    costs = measure_all(lanes)
    assert all(each == costs[0] for each in costs)
    assert [lane.direct_bytes for lane in lanes] == [
        _native.direct_bytes(ranks, wire, costs[0])
    ] * ranks


def test_a_slow_link_is_everyones() -> None:
    """One link in one direction is slow: all three ranks choose by it."""
    rate = 2e5
    ends = connect(3)
    near, far = ends[0][2], ends[2][0]
    assert near is not None and far is not None
    near.close()
    far.close()
    ends[0][2], inner = socket.socketpair()
    ends[2][0], outer = socket.socketpair()
    slow = SlowWire(inner, outer, rate)
    lanes = [make_lane(each, "f32", 0) for each in ends]
    costs = measure_all(lanes)
    assert all(each == costs[0] for each in costs)
    # A round's part takes so long at least, from when rank 0 begins. Rank 2 may begin later and see
    # less of it, but then rank 0 has waited for rank 2: one of them saw half.
    part = 8192
    assert costs[0].byte_ps * 2 * part / 1e3 + costs[0].latency_ns >= 0.5e9 * part / rate * 0.99
    assert {lane.direct_bytes for lane in lanes} == {_native.direct_bytes(3, "f32", costs[0])}
    del lanes  # closes the connections
    slow.join()
