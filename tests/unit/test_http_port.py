"""The HTTP server of probes and scrapes: which connection gives its place to the next."""

import socket
import threading
from collections.abc import Mapping

import pytest

from hearth.common import http_port, system
from hearth.common.http_port import Answer, HttpPort

SECONDS = 20.0


def connect(port: HttpPort, *sent: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port.port), SECONDS)
    for data in sent:
        made.sendall(data)
    return made


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def answer(connection: socket.socket) -> bytes:
    """All that the port sends."""
    found = bytearray()
    while data := connection.recv(4096):
        found += data
    return bytes(found)


def test_a_request_that_waits_for_the_port_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy port sees a crowd of new connections before a request that came meanwhile."""
    monkeypatch.setattr(http_port, "MAX_SILENT", 4)
    busy, go_on = threading.Event(), threading.Event()

    def wait(_: Mapping[str, str]) -> Answer:
        busy.set()
        assert go_on.wait(SECONDS)
        return Answer(b"waited")

    port = HttpPort("127.0.0.1:0", {"/wait": wait, "/": lambda _: Answer(b"there")}, name="test")
    try:
        own = connect(port)
        assert answer(connect(port, request("/"))).endswith(b"there")  # the one before is accepted
        blocking = connect(port, request("/wait"))
        assert busy.wait(SECONDS)
        crowd = [connect(port) for _ in range(12)]
        own.sendall(request("/"))
        go_on.set()
        assert answer(own).endswith(b"there")
        assert answer(blocking).endswith(b"waited")
        # The oldest of the others made room, for themselves.
        assert crowd[0].recv(1) == b""
        for each in crowd:
            each.close()
    finally:
        go_on.set()
        port.stop()


def test_readable_is_what_is_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not system.is_readable(ours)
        theirs.sendall(b"ab")
        assert system.is_readable(ours)
        ours.recv(2)
        assert not system.is_readable(ours)
        theirs.close()
        assert system.is_readable(ours)  # the end is something to read
    assert not system.is_readable(ours)
