"""Floods of a port that speaks HTTP/1.1 (RFC 9112): what a connection sends, without an end."""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

PATH = b"/v1/completions"
_MIB = bytes(1 << 20)


def connect(address: str, ca: Path | None, seconds: float) -> socket.socket:
    """A connection, with TLS where `ca` is given and without a certificate of its own."""
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host, int(port)), seconds)
    if ca is None:
        return made
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    return context.wrap_socket(made)


def head(*fields: bytes, method: bytes = b"POST", path: bytes = PATH) -> bytes:
    """A request's head."""
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: localhost", *fields]
    return b"\r\n".join([*lines, b"", b""])


def endless_heads() -> Iterator[bytes]:
    """Header fields, one after the other."""
    yield head()[:-2]
    for number in itertools.count():
        yield b"X-%d: %s\r\n" % (number, b"z" * 1000)


def endless_lines() -> Iterator[bytes]:
    """A start line without an end."""
    yield b"GET /"
    yield from itertools.repeat(b"a" * 4096)


def large_bodies() -> Iterator[bytes]:
    """A body of the announced 4 MiB but for its last byte."""
    yield head(b"Content-Type: application/json", b"Content-Length: 4194304")
    yield from (_MIB, _MIB, _MIB, _MIB[:-1])
    yield from itertools.repeat(b"")


def chunks() -> Iterator[bytes]:
    """A body in chunks of a byte each, with long extensions."""
    yield head(b"Transfer-Encoding: chunked")
    yield from itertools.repeat((b"1;" + b"e" * 900 + b"\r\nz\r\n") * 16)


def pipelines() -> Iterator[bytes]:
    """Requests behind each other, whose answers nobody reads."""
    yield from itertools.repeat(head(method=b"GET", path=b"/v1/models") * 64)


def deep_bodies() -> Iterator[bytes]:
    """Nested lists of JSON, request after request."""
    body = b'{"prompt": ' + b"[" * 60_000 + b"]" * 60_000 + b"}"
    yield from itertools.repeat(head(b"Content-Length: %d" % len(body)) + body)


def wrong_bodies() -> Iterator[bytes]:
    """Requests that are refused at once."""
    body = b'{"prompt": 7}'
    yield from itertools.repeat((head(b"Content-Length: %d" % len(body)) + body) * 16)


def upgrades() -> Iterator[bytes]:
    """Connections that ask for another protocol."""
    fields = (b"Connection: Upgrade", b"Upgrade: websocket")
    yield from itertools.repeat(head(*fields, method=b"GET", path=b"/") * 16)


FLOODS: dict[str, Callable[[], Iterator[bytes]]] = {
    each.__name__: each
    for each in (
        endless_heads,
        endless_lines,
        large_bodies,
        chunks,
        pipelines,
        deep_bodies,
        wrong_bodies,
        upgrades,
    )
}
