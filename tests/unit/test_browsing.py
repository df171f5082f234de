"""mDNS packets that strangers invent: what they leave in memory, and workers found among them."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zeroconf import ServiceInfo, Zeroconf
from zeroconf._dns import DNSAddress, DNSNsec, DNSPointer, DNSRecord, DNSService, DNSText
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf._protocol.outgoing import DNSOutgoing

from hearth.root.discovery import browsing
from hearth.root.discovery.browsing import Browser
from hearth.root.discovery.mdns import addresses_of
from hearth.worker.announce import SERVICE_TYPE, open_zeroconf

# Of a stranger's records: longer than any worker's.
YEARS = 60_000_000
# As RFC 6762 (10) has them: of a host's records, and of others.
HOST, OTHER = 120, 4500


class Listening:
    """A browser on the loopback, packets put into its zeroconf's thread, and its reports."""

    def __init__(self) -> None:
        self.zc: Any = open_zeroconf(["127.0.0.1"])
        self.seen: dict[str, list[str]] = {}
        self.left: list[str] = []
        self.browser = Browser(self.zc, self._see, self.left.append)

    def _see(self, info: ServiceInfo) -> None:
        self.seen[info.name] = addresses_of(info)

    def receive(self, *packets: list[DNSRecord]) -> None:
        """Returns once the packets were read."""
        done = threading.Event()
        wires = [wire for packet in packets for wire in wire_of(packet)]

        def read() -> None:
            for wire in wires:
                self.zc.record_manager.async_updates_from_response(DNSIncoming(wire))
            done.set()

        self.zc.loop.call_soon_threadsafe(read)
        assert done.wait(60)

    def close(self) -> None:
        self.browser.stop()
        self.zc.close()


@pytest.fixture
def listening() -> Iterator[Listening]:
    listening = Listening()
    yield listening
    listening.close()


def wire_of(records: list[DNSRecord]) -> list[bytes]:
    packet = DNSOutgoing(0x8400)
    for record in records:
        packet.add_answer_at_time(record, 0)
    return packet.packets()


def invented(number: int) -> list[DNSRecord]:
    """A packet of a few names that stay for years."""
    records: list[DNSRecord] = []
    for each in range(4):
        name = f"{number}-{each}.{SERVICE_TYPE}"
        records.append(DNSPointer(SERVICE_TYPE, 12, 1, YEARS, name))
        records.append(DNSText(name, 16, 0x8001, YEARS, b"\x09" + b"x" * 9))
    return records


def worker(label: str, host: str, ttl: int | None = None) -> list[DNSRecord]:
    """A packet as a worker sends it; with ttl=0 it leaves."""
    name, server = f"{label}.{SERVICE_TYPE}", f"{label}.local."
    host_ttl, other = (HOST, OTHER) if ttl is None else (ttl, ttl)
    return [
        DNSPointer(SERVICE_TYPE, 12, 1, other, name),
        DNSService(name, 33, 0x8001, host_ttl, 0, 0, 7717, server),
        DNSText(name, 16, 0x8001, other, b"\0"),
        DNSAddress(server, 1, 0x8001, host_ttl, bytes(map(int, host.split(".")))),
    ]


def test_invented_names_do_not_pile_up(listening: Listening) -> None:
    """Memory is the same after 12,000 records and after 36,000; a worker is found then."""
    listening.receive(worker("first", "10.0.0.1"))
    tracemalloc.start()
    try:
        listening.receive(*map(invented, range(1_500)))
        listening.seen.clear()
        first, _ = tracemalloc.get_traced_memory()
        listening.receive(*map(invented, range(1_500, 4_500)))
        listening.seen.clear()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after < 1.5 * first
    listening.receive(worker("pi", "10.0.0.2"))
    assert listening.seen == {f"pi.{SERVICE_TYPE}": ["10.0.0.2:7717"]}
    # What the cache had to drop has not left.
    assert listening.left == []


def test_records_that_find_no_worker_do_not_stay(listening: Listening) -> None:
    """One NSEC record of 8 KiB is 65,536 numbers in zeroconf's cache."""
    name = f"pi.{SERVICE_TYPE}"
    denied = DNSNsec(name, 47, 0x8001, YEARS, name, list(range(1, 200)))
    long = DNSText(name, 16, 0x8001, YEARS, b"\xc8" + b"x" * 200)
    text = DNSText(name, 16, 0x8001, YEARS, b"".join([long.text] * 7))
    listening.receive([denied, text, *worker("pi", "10.0.0.2")], [denied])
    kept = listening.zc.cache.entries_with_name(name)
    assert sorted(type(each).__name__ for each in kept) == ["DNSService", "DNSText"]
    assert [each.text for each in kept if isinstance(each, DNSText)] == [b"\0"]
    assert listening.seen == {name: ["10.0.0.2:7717"]}


def test_workers_come_and_leave(listening: Listening) -> None:
    name = f"pi.{SERVICE_TYPE}"
    listening.receive(worker("pi", "10.0.0.2"))
    listening.receive(list(reversed(worker("pi", "10.0.0.3"))))
    assert "10.0.0.3:7717" in listening.seen[name]
    listening.receive(worker("pi", "10.0.0.3", ttl=0))
    assert listening.left == [name]
    # Only the type of Hearth's workers counts.
    printer = DNSPointer("_ipp._tcp.local.", 12, 1, OTHER, "printer._ipp._tcp.local.")
    listening.seen.clear()
    listening.receive([printer, DNSPointer(SERVICE_TYPE, 12, 1, OTHER, "printer._ipp._tcp.local.")])
    assert listening.seen == {}


def test_a_packet_of_many_names_is_read_in_part(listening: Listening) -> None:
    names = [f"{number}.{SERVICE_TYPE}" for number in range(300)]
    records: list[DNSRecord] = [DNSPointer(SERVICE_TYPE, 12, 1, OTHER, name) for name in names]
    packets = wire_of(records)
    listening.receive(records)
    assert len(packets) * browsing._MAX_NAMES >= len(listening.seen) > 0
    assert len(listening.seen) < len(names)


def test_workers_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """So one whose records were dropped comes back, and one whose first packet was lost."""
    monkeypatch.setattr(browsing, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(browsing, "_MOST_SECONDS", 0.02)
    asked: list[bytes] = []
    enough = threading.Event()

    class Lan(Zeroconf):
        def __init__(self) -> None: ...

        def add_listener(self, *_: Any) -> None: ...

        def send(self, out: DNSOutgoing, *_: Any, **__: Any) -> None:
            asked.extend(out.packets())
            if len(asked) >= 5:
                enough.set()

    browser = Browser(Lan(), lambda info: None, lambda name: None)
    try:
        assert enough.wait(20)
    finally:
        browser.stop()
    question = DNSIncoming(asked[0])
    assert question.is_query()
    assert [(each.name, each.type) for each in question.questions] == [(SERVICE_TYPE, 12)]


LABELS = st.text(max_size=40).map(lambda text: f"{text}.{SERVICE_TYPE}") | st.sampled_from(
    [SERVICE_TYPE, "", ".", f".{SERVICE_TYPE}", SERVICE_TYPE.upper(), f"a.b.{SERVICE_TYPE.upper()}"]
)
RECORDS = st.one_of(
    st.builds(lambda key, name: DNSPointer(key, 12, 1, OTHER, name), LABELS, LABELS),
    st.builds(lambda key, name: DNSService(key, 33, 1, HOST, 0, 0, 1, name), LABELS, LABELS),
    st.builds(lambda key, data: DNSText(key, 16, 1, 0, data), LABELS, st.binary(max_size=20)),
    st.builds(lambda key, data: DNSAddress(key, 1, 1, HOST, data), LABELS, st.binary(max_size=16)),
)


@given(records=st.lists(RECORDS, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_records_of_any_names_are_read(listening: Listening, records: list[DNSRecord]) -> None:
    """A worker that is announced after them is found."""
    with suppress(Exception):  # a name that no packet can have
        listening.receive(records)
    listening.seen.clear()
    label = "p" * 41  # no record above has it
    listening.receive(worker(label, "10.0.0.2"))
    assert listening.seen == {f"{label}.{SERVICE_TYPE}": ["10.0.0.2:7717"]}
