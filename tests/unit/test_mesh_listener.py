"""The mesh port: who is let in, and strangers that cannot keep a rank out."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.common.errors import HearthError, Reason
from hearth.common.mesh import connect, connect_all
from hearth.common.mesh_handshake import HELLO_BYTES, NONCE_BYTES, PROOF_BYTES, Handshake
from hearth.common.mesh_listener import (
    MAX_HANDSHAKES,
    MAX_HANDSHAKES_PER_HOST,
    MeshListener,
    _network,
)

SECONDS = 20.0


@pytest.fixture
def listener() -> Iterator[MeshListener]:
    made = MeshListener("127.0.0.1")
    yield made
    made.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_all_addresses_are_those_of_ipv6_too(host: str) -> None:
    listener = MeshListener(host)
    try:
        for address in ("127.0.0.1", "::1"):
            try:
                connection = socket.create_connection((address, listener.port), SECONDS)
            except OSError:
                assert address == "::1"
                pytest.skip("no IPv6 here")
            with connection:
                assert len(read(connection, NONCE_BYTES)) == NONCE_BYTES
    finally:
        listener.close()


def key() -> bytes:
    return secrets.token_bytes(32)


def stranger(listener: MeshListener, host: str = "127.0.0.1") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", listener.port), SECONDS, (host, 0))
    assert len(read(made, NONCE_BYTES)) == NONCE_BYTES
    return made


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := connection.recv(size - len(data))):
        data += part
    return data


def closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def deadline(seconds: float = SECONDS) -> float:
    return time.monotonic() + seconds


@pytest.mark.parametrize("cipher", ["plain", "aes-256-gcm"])
def test_three_ranks_meet_and_have_each_others_keys(cipher: str) -> None:
    listeners = [MeshListener("127.0.0.1") for _ in range(3)]
    addresses = ["", *(f"127.0.0.1:{each.port}" for each in listeners[1:])]
    epoch = key()
    results: dict[int, list[tuple[bytes, bytes]]] = {}

    def work(rank: int) -> None:
        if rank:
            listeners[rank].expect(epoch, rank, addresses[1:rank])
        lower = listeners[rank].take if rank else lambda _: {}
        made = connect_all(addresses, epoch, rank, lower, SECONDS, cipher)
        results[rank] = made.keys
        for number in made.sockets:
            if number >= 0:
                socket.socket(fileno=number).close()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    for each in listeners:
        each.close()
    used = set()
    for a in range(3):
        assert results[a][a] == (b"", b"")
        for b in range(3):
            if a != b:
                assert results[a][b] == results[b][a][::-1]
                used.add(results[a][b][0])
    assert len(used) == 6  # a key for every direction of every pair


def test_a_rank_may_dial_before_it_is_expected(listener: MeshListener) -> None:
    epoch = key()
    early = stranger(listener)
    # (The nonce was read; a hello for another one cannot prove the key.)
    early.sendall(Handshake(0, 2, bytes(32), bytes(32)).hello(epoch))
    done: list[object] = []
    thread = threading.Thread(
        target=lambda: done.append(connect(f"127.0.0.1:{listener.port}", epoch, 1, 2, deadline()))
    )
    thread.start()
    listener.expect(epoch, 2)
    connect(f"127.0.0.1:{listener.port}", epoch, 0, 2, deadline()).connection.close()
    thread.join(SECONDS)
    taken = listener.take(deadline())
    assert set(taken) == {0, 1}
    assert done
    assert closed(early)
    for link in taken.values():
        link.connection.close()


@pytest.mark.parametrize(
    ("rank", "peer", "right_key", "problem"),
    [
        (0, 2, False, "it did not prove the epoch's key"),
        (0, 3, True, "rank 0 dialled rank 3, and this is rank 2"),
        (2, 2, True, "rank 2 dialled rank 2, and this is rank 2"),
        (5, 2, True, "rank 5 dialled rank 2, and this is rank 2"),
    ],
)
def test_others_are_refused(
    listener: MeshListener,
    caplog: pytest.LogCaptureFixture,
    rank: int,
    peer: int,
    right_key: bool,
    problem: str,
) -> None:
    epoch = key()
    listener.expect(epoch, 2)
    with socket.create_connection(("127.0.0.1", listener.port), SECONDS) as dialler:
        nonce = read(dialler, NONCE_BYTES)
        hello = Handshake(rank, peer, bytes(32), nonce).hello(epoch if right_key else key())
        dialler.sendall(hello)
        assert closed(dialler)
    with pytest.raises(HearthError) as caught:
        listener.take(deadline(0.0))
    assert caught.value.reason == Reason.PEER_LOST
    assert problem in caplog.text


def test_a_hello_in_pieces_counts_and_a_cut_one_does_not(listener: MeshListener) -> None:
    epoch = key()
    listener.expect(epoch, 1)
    with socket.create_connection(("127.0.0.1", listener.port), SECONDS) as dialler:
        hello = Handshake(0, 1, bytes(32), read(dialler, NONCE_BYTES)).hello(epoch)
        for byte in hello[:-1]:
            dialler.sendall(bytes((byte,)))
        with pytest.raises(HearthError):
            listener.take(deadline(0.0))
        dialler.sendall(hello[-1:])
        assert len(read(dialler, PROOF_BYTES)) == PROOF_BYTES
        listener.take(deadline())[0].connection.close()
    assert len(hello) == HELLO_BYTES


@contextmanager
def flood(listener: MeshListener, hosts: list[str], each: int) -> Iterator[None]:
    """Silent connections from these hosts, made again as soon as one is closed."""
    stop = threading.Event()

    def hold(host: str) -> None:
        held: list[socket.socket] = []
        while not stop.is_set():
            while len(held) < each and not stop.is_set():
                with suppress(OSError):
                    made = socket.create_connection(("127.0.0.1", listener.port), 1, (host, 0))
                    made.setblocking(False)
                    held.append(made)
            for one in list(held):
                try:
                    if one.recv(64) == b"":
                        raise ConnectionError
                except BlockingIOError:
                    continue
                except OSError:
                    one.close()
                    held.remove(one)
            stop.wait(0.02)
        for one in held:
            one.close()

    threads = [threading.Thread(target=hold, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    stop.wait(0.5)
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS)


@pytest.mark.parametrize(
    "hosts",
    [["127.0.0.1"], ["127.0.0.8", "127.0.0.9"], [f"127.0.0.{i}" for i in range(10, 22)]],
    ids=["the rank's own host", "two hosts", "twelve hosts"],
)
def test_silent_strangers_do_not_keep_a_rank_out(listener: MeshListener, hosts: list[str]) -> None:
    address = f"127.0.0.1:{listener.port}"
    with flood(listener, hosts, MAX_HANDSHAKES_PER_HOST + 8):
        for _ in range(5):
            epoch = key()
            listener.expect(epoch, 1, ["127.0.0.1"])
            # (Without the flood 1 ms; a rank has 10 s.)
            link = connect(address, epoch, 0, 1, deadline(5.0))
            listener.take(deadline())[0].connection.close()
            link.connection.close()


def test_strangers_make_room_for_each_other_and_not_from_ranks(listener: MeshListener) -> None:
    """The oldest of one host, then the oldest of strangers; a rank's host keeps its room."""
    listener.expect(key(), 1, ["127.0.0.2"])
    until = deadline()
    while not listener._hosts:  # a thread looks them up
        assert time.monotonic() < until
        time.sleep(0.01)
    rank = stranger(listener, "127.0.0.2")
    first = [stranger(listener, "127.0.0.3") for _ in range(MAX_HANDSHAKES_PER_HOST + 1)]
    assert closed(first[0])
    others = [stranger(listener, f"127.0.0.{4 + i % 20}") for i in range(MAX_HANDSHAKES)]
    assert closed(first[1])
    rank.settimeout(0.1)
    with pytest.raises(TimeoutError):
        rank.recv(1)
    for each in (rank, *first, *others):
        each.close()


def test_closing_ends_everything() -> None:
    listener = MeshListener("127.0.0.1")
    waiting = stranger(listener)
    port = listener.port
    listener.close()
    assert closed(waiting)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1)


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_an_ipv6_network_is_one_host(address: object, rest: int) -> None:
    import ipaddress

    assert isinstance(address, ipaddress.IPv6Address)
    same = ipaddress.IPv6Address(int(address) >> 64 << 64 | rest)
    if not (address.is_link_local or address.ipv4_mapped or same.ipv4_mapped):
        assert _network(str(address)) == _network(str(same))
    assert _network("10.0.0.1") == _network("::ffff:10.0.0.1") == "10.0.0.1"
