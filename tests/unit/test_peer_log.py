"""The log of workers' states: whole for those that proved themselves, bounded for strangers."""

from __future__ import annotations

import logging

import pytest

from hearth.root.membership.peers import Peer, PeerState
from hearth.root.status.peer_log import MAX_STRANGERS, WINDOW_SECONDS, PeerLog

LOGGER = "hearth.root.status.peer_log"


def peer(address: str, *sources: str, state: PeerState = PeerState.SEEN, reason: str = "") -> Peer:
    made = Peer(address, 0, set(sources))
    made.state, made.reason = state, reason
    return made


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log's lines from INFO up since the last call; other loggers' do not count."""
    found = [
        record.getMessage()
        for record in caplog.records
        if record.name == LOGGER and record.levelno >= logging.INFO
    ]
    caplog.clear()
    return found


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_strangers_do_not_fill_the_log(caplog: pytest.LogCaptureFixture, level: int) -> None:
    caplog.set_level(level, LOGGER)
    now = [0.0]
    log = PeerLog(lambda: now[0])
    listed = peer("10.0.0.1:7717", "list", "mdns")
    proven = peer("10.0.0.2:7717", "mdns", state=PeerState.READY)
    log.show([listed, proven])
    assert len(lines(caplog)) == 2
    # 1,000 names, each seen, unreachable, and gone.
    for number in range(1000):
        address = f"10.1.{number // 250}.{number % 250}:7717"
        for state in (PeerState.SEEN, PeerState.UNREACHABLE):
            log.show([listed, proven, peer(address, "mdns", state=state)])
        log.show([listed, proven])
    assert len(lines(caplog)) == MAX_STRANGERS
    # What the cluster's own do is logged all the same.
    for number in range(100):
        listed.state, listed.reason = PeerState.UNREACHABLE, f"cause {number}"
        proven.state, proven.reason = PeerState.LOST, f"cause {number}"
        log.show([listed, proven])
    assert len(lines(caplog)) == 200
    log.show([])
    assert sorted(lines(caplog)) == [
        f"worker {address}: no source lists it any more"
        for address in ("10.0.0.1:7717", "10.0.0.2:7717")
    ]
    # The next window has the count.
    now[0] += WINDOW_SECONDS
    log.show([peer("10.2.0.1:7717", "mdns")])
    assert lines(caplog) == [
        f"{3000 - MAX_STRANGERS} lines about workers that only mDNS lists were left out",
        "worker 10.2.0.1:7717: seen",
    ]


def test_a_proven_worker_that_left_is_a_stranger_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    log = PeerLog(lambda: 0.0)
    for number in range(MAX_STRANGERS + 5):
        log.show([peer(f"10.0.0.{number}:1", "mdns", state=PeerState.READY)])
    known = 2 * (MAX_STRANGERS + 5) - 1
    assert len(lines(caplog)) == known
    assert len(log._proven) == len(log._logged) == 1
