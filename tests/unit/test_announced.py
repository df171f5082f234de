"""Names announced on a LAN: strangers take no place from workers, listed or looked up."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import BadTypeInNameException, ServiceInfo
from zeroconf import current_time_millis as now_ms
from zeroconf._cache import DNSCache
from zeroconf._dns import DNSAddress, DNSPointer, DNSService, DNSText

from hearth.root.discovery import announced, mdns
from hearth.root.discovery.announced import (
    MAX_ADDRESSES,
    PROVEN,
    STRANGERS,
    STRANGERS_OF_A_HOST,
    Announced,
)
from hearth.root.discovery.mdns import MdnsSource, addresses_of
from hearth.worker.announce import SERVICE_TYPE

WORKER = "192.168.1.20:7717"


def test_invented_names_give_their_places_up() -> None:
    known = Announced()
    for number in range(STRANGERS):
        assert known.offer(f"stranger{number}", [f"10.0.0.{number}:1"], 0.0)
    assert not known.offer("pi", [WORKER], 1.0)
    known.tried("10.0.0.7:1", False, 2.0)
    assert known.offer("pi", [WORKER], 3.0)
    assert WORKER in known.listing()
    assert "10.0.0.7:1" not in known.listing()
    # A name that gave its place up does not come back at once.
    known.tried("10.0.0.8:1", False, 3.0)
    assert not known.offer("stranger7", ["10.0.0.7:1"], 4.0)
    assert known.offer("stranger7", ["10.0.0.7:1"], 64.0)


def test_a_worker_that_answered_keeps_its_place() -> None:
    known = Announced()
    assert known.offer("pi", [WORKER], 0.0)
    known.tried(WORKER, True, 1.0)
    for attempt in range(10):
        known.tried(WORKER, False, 2.0 + attempt)
    for number in range(3 * STRANGERS):
        known.offer(f"stranger{number}", [f"10.0.{number}.1:1"], 20.0)
        known.tried(f"10.0.{number}.1:1", False, 20.0)
    assert WORKER in known.listing()
    # Nor does a stranger who announces its name elsewhere move it.
    known.offer("pi", ["10.6.6.6:1"], 21.0)
    assert WORKER in known.listing()
    # Until it fails there: it may have another address now.
    known.tried(WORKER, False, 22.0)
    assert "10.6.6.6:1" in known.listing()
    assert known.withdraw("pi")
    assert not known.withdraw("pi")


def test_few_names_are_of_one_host() -> None:
    known = Announced()
    taken = [known.offer(f"{n}", [f"[fd00::5]:{1000 + n}"], 0.0) for n in range(20)]
    assert sum(taken) == STRANGERS_OF_A_HOST
    assert known.offer("pi", [WORKER], 0.0)
    # Workers that answered do not count.
    for address in known.listing():
        known.tried(address, True, 1.0)
    assert known.offer("more", ["[fd00::5]:2000"], 2.0)


def test_a_name_is_tried_at_each_of_its_addresses() -> None:
    known = Announced()
    known.offer("pi", ["10.0.0.1:1", "[fd00::1]:1"], 0.0)
    known.tried("10.0.0.1:1", False, 1.0)
    assert known.listing() == ["[fd00::1]:1"]
    known.tried("[fd00::1]:1", True, 2.0)
    known.offer("pi", ["10.0.0.1:1", "[fd00::1]:1"], 3.0)
    assert known.listing() == ["[fd00::1]:1"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "good", "bad", "withdraw"]),
        st.integers(0, 400),
        st.integers(0, 20),
    ),
    max_size=600,
)


@given(STEPS)
def test_the_number_of_places_is_bounded(steps: list[tuple[str, int, int]]) -> None:
    known = Announced()
    for now, (step, name, host) in enumerate(steps):
        address = f"10.0.0.{host}:{name + 1}"
        if step == "offer":
            known.offer(f"{name}", [address, f"[fd00::{host}]:{name + 1}"], float(now))
        elif step == "withdraw":
            known.withdraw(f"{name}")
        else:
            known.tried(address, step == "good", float(now))
        strangers = known._strangers()
        assert len(strangers) <= STRANGERS
        assert len(known._entries) - len(strangers) <= PROVEN
        assert all(len(entry.addresses) <= MAX_ADDRESSES for entry in known._entries.values())


# Look-ups


class Lan:
    """Zeroconf's cache, filled as a stranger likes. Look-ups of names without an address wait."""

    def __init__(self) -> None:
        self.cache = DNSCache()
        self.asked: list[str] = []
        self.closed = threading.Event()

    def announce(self, label: str, host: str = "", port: int = 7717) -> str:
        name = f"{label}.{SERVICE_TYPE}"
        server = f"{label}.local."
        now = now_ms()
        records: list[Any] = [DNSPointer(SERVICE_TYPE, 12, 1, 4500, name, now)]
        if host:
            packed = bytes(map(int, host.split(".")))
            records += [
                DNSService(name, 33, 1 | 0x8000, 4500, 0, 0, port, server, now),
                DNSText(name, 16, 1 | 0x8000, 4500, b"\0", now),
                DNSAddress(server, 1, 1 | 0x8000, 4500, packed, created=now),
            ]
        self.cache.async_add_records(records)
        return name

    def leave(self, name: str) -> None:
        """zeroconf forgets the record before it says so."""
        records = list(self.cache.entries_with_name(SERVICE_TYPE))
        self.cache.async_remove_records([r for r in records if getattr(r, "alias", "") == name])

    def get_service_info(self, type_: str, name: str, timeout: int) -> None:
        self.asked.append(name)
        self.closed.wait(20)

    def close(self) -> None:
        self.closed.set()


def named(name: str) -> ServiceInfo:
    """An announcement that has the name only: the rest is in the cache."""
    return ServiceInfo(SERVICE_TYPE, name)


class Still:
    """A browser that sees nothing by itself."""

    def __init__(self, *_: object) -> None: ...

    def stop(self) -> None: ...


class Workers:
    """Takes reports; answers for the addresses listed: only WORKER has a worker."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.listed: list[str] = []
        self.seen: set[str] = set()

    def __call__(self, source: str, addresses: list[str]) -> None:
        with self.changed:
            self.listed = addresses
            self.seen.update(addresses)
            self.changed.notify_all()

    def answer_until_found(self, source: MdnsSource) -> bool:
        end = time.monotonic() + 60  # for a test that would hang
        while time.monotonic() < end:
            with self.changed:
                listed = list(self.listed)
            if WORKER in listed:
                return True
            for address in listed:
                source.tried(address, False)
            with self.changed:
                if self.listed == listed:
                    self.changed.wait(0.2)
        return False


@pytest.fixture
def lan(monkeypatch: pytest.MonkeyPatch) -> Lan:
    lan = Lan()
    monkeypatch.setattr(mdns, "open_zeroconf", lambda _: lan)
    monkeypatch.setattr(mdns, "Browser", Still)
    monkeypatch.setattr(mdns, "_AGAIN_SECONDS", 0.01)
    return lan


def test_a_worker_is_found_among_invented_names(lan: Lan) -> None:
    found = Workers()
    source = MdnsSource(found)
    source.start()
    try:
        for number in range(1000):
            name = lan.announce(
                f"stranger{number}", f"10.{number % 7}.{number // 250}.{number % 250}"
            )
            source.seen(named(name))
        for number in range(500):  # without an address
            source.seen(named(lan.announce(f"silent{number}")))
        with found.changed:
            assert len(found.listed) == STRANGERS
            assert len(source._waiting) <= mdns._MAX_WAITING
        worker = lan.announce("pi", "192.168.1.20")
        source.seen(named(worker))
        assert found.answer_until_found(source)
        source.tried(WORKER, True)
        for number in range(500):
            name = lan.announce(f"late{number}", f"10.9.{number // 250}.{number % 250}")
            source.seen(named(name))
            source.tried(f"10.9.{number // 250}.{number % 250}:7717", False)
        with found.changed:
            assert WORKER in found.listed
        lan.leave(worker)
        source.left(worker)
        with found.changed:
            assert WORKER not in found.listed
    finally:
        source.stop()


def test_a_name_that_gave_its_place_up_comes_again(
    lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was off while strangers came, and that does not announce itself again."""
    monkeypatch.setattr(announced, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(announced, "STRANGERS", 1)
    found = Workers()
    source = MdnsSource(found)
    source.start()
    try:
        source.seen(named(lan.announce("pi", "192.168.1.20")))
        source.tried(WORKER, False)
        stranger = lan.announce("stranger", "10.0.0.1")
        source.seen(named(stranger))
        with found.changed:
            assert found.changed.wait_for(lambda: "10.0.0.1:7717" in found.seen, 20)
        lan.leave(stranger)
        source.left(stranger)
        with found.changed:
            assert found.changed.wait_for(lambda: found.listed == [WORKER], 20)
    finally:
        source.stop()


@pytest.mark.parametrize("label", ["", "." * 5, "a" * 200, "\0", "\n\x1b", "ü" * 30])
def test_names_of_any_kind_hold_nobody_up(lan: Lan, label: str) -> None:
    found = Workers()
    source = MdnsSource(found)
    source.start()
    try:
        for name in (label, f"{label}.{SERVICE_TYPE}"):
            with suppress(BadTypeInNameException):
                source.seen(named(name))
        source.seen(named(lan.announce("pi", "192.168.1.20")))
        with found.changed:
            assert WORKER in found.listed
    finally:
        source.stop()


@pytest.mark.parametrize(
    ("addresses", "scope", "expected"),
    [
        (["10.0.0.1"], None, ["10.0.0.1:7"]),
        (["fd00::1", "10.0.0.1"], None, ["10.0.0.1:7", "[fd00::1]:7"]),
        (["fe80::1"], 3, ["[fe80::1%3]:7"]),
        (["fe80::1"], None, []),  # of which link?
        (["fe80::1", "2001:db8::1"], 3, ["[2001:db8::1]:7", "[fe80::1%3]:7"]),
        (["0.0.0.0", "::", "224.0.0.1", "ff02::1"], None, []),
    ],
)
def test_the_addresses_of_a_service(
    addresses: list[str], scope: int | None, expected: list[str]
) -> None:
    info = ServiceInfo(
        SERVICE_TYPE,
        f"pi.{SERVICE_TYPE}",
        port=7,
        parsed_addresses=addresses,
        interface_index=scope,
    )
    assert addresses_of(info) == expected
    assert addresses_of(ServiceInfo(SERVICE_TYPE, f"pi.{SERVICE_TYPE}", port=0)) == []
