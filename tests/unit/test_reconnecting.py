"""Quick retries of a client whose connection was closed before it was ready."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from hearth.client import AsyncClient, Client, Unreachable
from hearth.client.connection import Reconnecting

# gRPC counts its own pauses: an attempt of ours may find it in one, or it may add one.
ATTEMPTS = 2


@contextmanager
def crowded_port() -> Iterator[tuple[str, list[float]]]:
    """A port that closes each connection at its first bytes; its address, and when they came."""
    listener = socket.create_server(("127.0.0.1", 0))
    came: list[float] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            came.append(time.monotonic())
            connection.recv(1)
            connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", came
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_a_call_is_tried_again() -> None:
    with crowded_port() as (address, came), Client(address) as client:
        with pytest.raises(Unreachable):
            client.model()
        assert len(came) >= ATTEMPTS


def test_a_stream_is_tried_again() -> None:
    with crowded_port() as (address, came), Client(address) as client:
        with pytest.raises(Unreachable), client.generate("hi") as stream:
            list(stream)
        assert len(came) >= ATTEMPTS


def test_asyncio_tries_again() -> None:
    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(Unreachable):
                await client.model()
        async with AsyncClient(address) as client:
            with pytest.raises(Unreachable):
                await client.generate_text("hi")

    with crowded_port() as (address, came):
        asyncio.run(ask(address))
        assert len(came) >= 2 * ATTEMPTS


def test_a_closed_port_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float | None] = []

    class Watched(Reconnecting):
        def pause(self, error: grpc.RpcError) -> float | None:
            pauses.append(super().pause(error))
            return pauses[-1]

    monkeypatch.setattr("hearth.client.client.Reconnecting", Watched)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with Client(address) as client:
        with pytest.raises(Unreachable, match=r"\(connection refused\); check"):
            client.model()
    assert pauses == [None]
