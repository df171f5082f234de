"""Sources of workers: a DNS name as it changes, and mDNS on the loopback."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from hearth.common.errors import HearthError
from hearth.root.discovery.mdns import MdnsSource
from hearth.root.discovery.sources import DnsSource, sources
from hearth.root.settings import Joining
from hearth.worker.announce import Announcement


class Found:
    """A source's reports; waits for the one that a test expects."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.told: list[tuple[str, list[str]]] = []

    def __call__(self, source: str, addresses: list[str]) -> None:
        with self._changed:
            self.told.append((source, addresses))
            self._changed.notify_all()

    def wait(self, source: str, addresses: list[str]) -> None:
        with self._changed:
            came = self._changed.wait_for(lambda: (source, addresses) in self.told[-1:], 20)
            assert came, self.told


def v4(host: str, port: int = 7717) -> tuple[Any, ...]:
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))


def v6(host: str, port: int = 7717) -> tuple[Any, ...]:
    return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (host, port, 0, 0))


def test_a_name_is_looked_up_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {"now": [v4("10.0.0.2"), v4("10.0.0.1"), v4("10.0.0.1")]}

    def getaddrinfo(host: str, port: int, **_: object) -> Any:
        assert (host, port) == ("workers", 7717)
        if isinstance(answers["now"], Exception):
            raise answers["now"]
        return answers["now"]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found = Found()
    source = DnsSource("workers:7717", found, seconds=0.01)
    source.start()
    try:
        found.wait("dns", ["10.0.0.1:7717", "10.0.0.2:7717"])
        answers["now"] = [v4("10.0.0.2"), v6("fd00::5"), v6("fe80::1%eth0"), v6("fe80::2")]
        found.wait("dns", ["10.0.0.2:7717", "[fd00::5]:7717", "[fe80::1%eth0]:7717"])
        # A resolver that fails says nothing of the workers; a name that is gone does.
        told = len(found.told)
        answers["now"] = OSError(socket.EAI_AGAIN, "try again")
        assert source.resolve() is None
        answers["now"] = socket.gaierror(socket.EAI_NONAME, "unknown")
        found.wait("dns", [])
        assert len(found.told) == told + 1
    finally:
        source.stop()


def test_the_loopback_has_a_name() -> None:
    assert "127.0.0.1:7717" in (DnsSource("localhost:7717", Found()).resolve() or [])


@pytest.mark.parametrize("name", ["workers", ":7717", "workers:port"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(HearthError, match="HOST:PORT"):
        sources(Joining(dns=name), Found())


def test_announced_workers_come_and_go() -> None:
    found = Found()
    source = MdnsSource(found, ["127.0.0.1"])
    source.start()
    try:
        one = Announcement("127.0.0.1:7001", 7001, "pi.local", "0123456789abcdef")
        found.wait("mdns", ["127.0.0.1:7001"])
        two = Announcement("127.0.0.1:7002", 7002, "pi.local", "fedcba9876543210")
        found.wait("mdns", ["127.0.0.1:7001", "127.0.0.1:7002"])
        one.stop()
        found.wait("mdns", ["127.0.0.1:7002"])
        two.stop()
        found.wait("mdns", [])
    finally:
        source.stop()


def test_nothing_to_announce_on() -> None:
    with pytest.raises(HearthError, match=r"--announce: nothing\.invalid has no address"):
        Announcement("nothing.invalid:7001", 7001, "pi", "0123")
