"""The port of a mesh: accepts lower ranks that prove the epoch's key.

Anyone can connect, so strangers cost little: one thread serves all handshakes, each is a socket and
a few bytes, and the oldest makes room for the next. Hosts of the expected ranks keep their room.
"""

from __future__ import annotations

import errno
import ipaddress
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from hearth.common.admission import Peer, Refusals, peer_address
from hearth.common.channels import format_address, split_address
from hearth.common.errors import HearthError, Reason
from hearth.common.mesh_handshake import (
    HELLO_BYTES,
    NONCE_BYTES,
    Handshake,
    proves,
    read_hello,
)
from hearth.common.mesh_link import Link, settle, unreachable

# A dialler that does not send its hello within this time is dropped.
HANDSHAKE_SECONDS = 2.0
# Concurrent handshakes, of all hosts and of one. A rank's takes a round trip: where strangers
# connect 1,000 times a second from one host, it still has 32 ms there, and it tries again.
MAX_HANDSHAKES = 128
MAX_HANDSHAKES_PER_HOST = 32
_BACKLOG = 1024
# Connections accepted before those that have sent something are read.
_ACCEPTS_AT_ONCE = 64


@dataclass(slots=True, eq=False)
class _Dialler:
    """A connection whose handshake is not done."""

    connection: socket.socket
    peer: Peer
    host: str
    nonce: bytes
    until: float
    data: bytearray = field(default_factory=bytearray)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens; 0.0.0.0 and :: take both IPv4 and IPv6, as in gRPC. Raises OSError."""
    if host in ("0.0.0.0", "::") and socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE or host == "::":
                raise
            # IPv6 is switched off
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Resolved, so that the interface of an address of one link (fe80::1%eth0) counts.
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return socket.create_server(found[0][4], family=family, backlog=_BACKLOG)


class MeshListener:
    """Accepts connections of lower ranks. A node is in one mesh at a time."""

    def __init__(self, host: str, port: int = 0) -> None:
        """Listens on host:port, 0 for any free one. Raises HearthError PORT_IN_USE."""
        try:
            self._socket = _listening(host, port)
        except (OSError, UnicodeError) as error:
            problem = f"cannot listen for the mesh on {format_address(host, port)}: {error}"
            raise HearthError(Reason.PORT_IN_USE, problem) from None
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])
        self._changed = threading.Condition()
        # The mesh being opened: its key, the own rank, the hosts of lower ranks, as far as they
        # are known, and the connected ranks.
        self._key: bytes | None = None
        self._rank = 0
        self._lower: frozenset[int] = frozenset()
        self._given_up = False
        self._hosts: frozenset[str] = frozenset()
        self._arrived: dict[int, Link] = {}
        self._closed = False
        self._refusals = Refusals("the mesh port")
        # Of the listener's thread only: the diallers, oldest first.
        self._diallers: dict[_Dialler, None] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._wake_up, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="mesh-listener", daemon=True)
        self._thread.start()

    def expect(
        self,
        key: bytes,
        rank: int,
        addresses: Iterable[str] = (),
        lower: Iterable[int] | None = None,
    ) -> None:
        """Accepts lower ranks that prove `key` from now on; closes earlier connections.

        lower: the ranks that connect; None: all below `rank`.
        addresses: of lower ranks, "host" or "host:port"; strangers do not take their room.
        """
        with self._changed:
            self._drop()
            self._key, self._rank = key, rank
            self._lower = frozenset(range(rank) if lower is None else lower)
            self._hosts = frozenset()
            self._given_up = False
        names = [_host(address) for address in addresses]
        # (Looking up names may take seconds; nobody waits for it.)
        look_up = threading.Thread(
            target=self._reserve, args=(key, names), name="mesh-hosts", daemon=True
        )
        look_up.start()
        self._wake()

    def take(self, deadline: float) -> dict[int, Link]:
        """The connections of all lower ranks, by rank; the caller owns them.

        deadline: of time.monotonic(). Raises HearthError PEER_LOST naming a missing rank, also
        after `give_up`.
        """
        with self._changed:
            while len(self._arrived) < len(self._lower):
                left = deadline - time.monotonic()
                if self._given_up or left <= 0 or not self._changed.wait(left):
                    absent = min(self._lower - set(self._arrived))
                    raise unreachable(absent, "it did not connect in time")
            arrived, self._arrived = self._arrived, {}
            self._key = None
            return arrived

    def give_up(self) -> None:
        """Ends `take` before its deadline, from any thread."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def close(self) -> None:
        """Closes the listener."""
        with self._changed:
            self._closed = True
            self._drop()
        self._wake()
        self._thread.join(timeout=5)

    def _drop(self) -> None:
        for link in self._arrived.values():
            link.connection.close()
        self._arrived = {}
        self._key = None

    def _wake(self) -> None:
        with suppress(OSError):
            self._wake_up.send(b"\0")

    def _reserve(self, key: bytes, names: Collection[str]) -> None:
        hosts: set[str] = set()
        for name in names:
            with suppress(OSError, UnicodeError):
                for *_, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
                    hosts.add(peer_address(address)[0])
        with self._changed:
            if self._key == key:
                self._hosts = frozenset(hosts)

    # The listener's thread.

    def _serve(self) -> None:
        while not self._closed:
            now = time.monotonic()
            oldest = next(iter(self._diallers), None)
            for selected, _ in self._selector.select(
                None if oldest is None else max(0.0, oldest.until - now)
            ):
                if selected.fileobj is self._socket:
                    self._accept()
                elif selected.fileobj is self._woken:
                    self._judge_waiting()
                elif selected.data in self._diallers:  # it may have made room for another
                    self._read(selected.data)
            self._expire()
        for dialler in list(self._diallers):
            self._end(dialler)
        self._selector.close()
        for each in (self._socket, self._wake_up, self._woken):
            each.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                connection, where = self._socket.accept()
            except BlockingIOError:
                return
            except OSError:  # most likely no descriptors left
                oldest = next(iter(self._diallers), None)
                if oldest is None:
                    time.sleep(0.05)
                    return
                self._refuse(oldest, "too many handshakes at once")
                continue
            peer = peer_address(where)
            host = peer[0] if peer[0] in self._hosts else _network(peer[0])
            self._make_room(host)
            dialler = _Dialler(
                connection,
                peer,
                host,
                secrets.token_bytes(NONCE_BYTES),
                time.monotonic() + HANDSHAKE_SECONDS,
            )
            self._diallers[dialler] = None
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, dialler)
            try:
                connection.send(dialler.nonce)  # fits the empty buffer of a new connection
            except OSError as error:
                self._refuse(dialler, f"no handshake: {error}")

    def _make_room(self, host: str) -> None:
        """Drops a handshake if there are too many for one more of `host`."""
        same = [each for each in self._diallers if each.host == host]
        if len(same) >= MAX_HANDSHAKES_PER_HOST:
            self._refuse(same[0], "too many handshakes at once")
        elif len(self._diallers) >= MAX_HANDSHAKES:
            strangers = (each for each in self._diallers if each.host not in self._hosts)
            oldest = next(strangers, None) or next(iter(self._diallers))
            self._refuse(oldest, "too many handshakes at once")

    def _read(self, dialler: _Dialler) -> None:
        try:
            part = dialler.connection.recv(HELLO_BYTES - len(dialler.data))
        except BlockingIOError:
            return
        except OSError as error:
            self._refuse(dialler, f"no handshake: {error}")
            return
        if not part:
            self._refuse(dialler, "no handshake: it closed the connection")
            return
        dialler.data += part
        if len(dialler.data) == HELLO_BYTES:
            self._selector.unregister(dialler.connection)
            self._judge(dialler)

    def _judge_waiting(self) -> None:
        with suppress(BlockingIOError):
            self._woken.recv(4096)
        for dialler in [each for each in self._diallers if len(each.data) == HELLO_BYTES]:
            self._judge(dialler)

    def _judge(self, dialler: _Dialler) -> None:
        """Accepts or refuses a dialler whose hello is here, or lets it wait for `expect`."""
        read = read_hello(bytes(dialler.data), dialler.nonce)
        if read is None:
            self._refuse(dialler, "it does not speak the mesh's handshake")
            return
        handshake, proof = read
        with self._changed:
            key = self._key
            if key is None:  # a dialler may learn of the mesh a moment before this rank
                return
            problem = self._problem(handshake, key, proof)
            if not problem:
                try:
                    dialler.connection.send(handshake.answer(key))
                    settle(dialler.connection)
                except OSError as error:
                    problem = f"no handshake: {error}"
            if not problem:
                del self._diallers[dialler]
                self._arrived[handshake.dialler] = Link(dialler.connection, handshake)
                self._changed.notify_all()
        if problem:
            self._refuse(dialler, problem)

    def _problem(self, handshake: Handshake, key: bytes, proof: bytes) -> str:
        """The reason to refuse a handshake; empty if it is accepted."""
        if not proves(handshake, key, proof):
            return "it did not prove the epoch's key"
        rank, peer = handshake.dialler, handshake.listener
        if peer == self._rank and rank < self._rank and rank not in self._lower:
            return f"rank {rank} dialled rank {peer}, which is not connected to it"
        if peer != self._rank or rank >= self._rank:
            return f"rank {rank} dialled rank {peer}, and this is rank {self._rank}"
        if rank in self._arrived:
            return f"rank {rank} is connected already"
        return ""

    def _expire(self) -> None:
        now = time.monotonic()
        while (oldest := next(iter(self._diallers), None)) is not None and oldest.until <= now:
            waited = len(oldest.data) == HELLO_BYTES
            problem = "no mesh is being opened" if waited else "no handshake: timed out"
            self._refuse(oldest, problem)

    def _refuse(self, dialler: _Dialler, problem: str) -> None:
        self._refusals.note(dialler.peer, problem)
        self._end(dialler)

    def _end(self, dialler: _Dialler) -> None:
        del self._diallers[dialler]
        with suppress(KeyError, ValueError):  # one whose hello is here is not watched any more
            self._selector.unregister(dialler.connection)
        dialler.connection.close()


def _host(address: str) -> str:
    if ":" not in address:
        return address
    with suppress(HearthError):
        return split_address(address)[0]
    return address


def _network(host: str) -> str:
    """The part of an address that one machine has: all of IPv4, the first half of IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if address.is_link_local:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))
