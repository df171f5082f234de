"""The round trip of a connection, as the kernel measured it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from hearth.common.mesh import round_trip


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the round trip")
def test_a_connection_that_was_used_has_one_and_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as here, server.accept()[0] as there:
            for _ in range(3):
                here.sendall(b"x")
                there.sendall(there.recv(1))
                here.recv(1)
            before = len(list(Path("/proc/self/fd").iterdir()))
            assert 0 < round_trip(here.fileno()) < 10
            assert len(list(Path("/proc/self/fd").iterdir())) == before
            here.sendall(b"y")
            assert there.recv(1) == b"y"


def test_what_is_not_tcp_has_none() -> None:
    here, there = socket.socketpair()
    with here, there:
        assert round_trip(here.fileno()) == 0.0
    assert round_trip(-1) == 0.0
