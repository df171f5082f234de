"""One client that takes all it can: others are served, and who does not read is ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from http2 import HEADERS, Raw, frame, headers
from serving_fakes import FakeRunner, Root

from hearth.client import Client, QueueFull
from hearth.v1 import root_pb2, root_pb2_grpc

SECONDS = 30.0
WATCH, GENERATE = b"/hearth.v1.RootService/WatchCluster", b"/hearth.v1.RootService/Generate"
BAD_NAME = b"/hearth.v1.RootService/\xff\xfe"


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(max_streams=8, server_options={"write_seconds": 1.0}) as running:
        yield running


def text(address: str) -> str:
    with Client(address) as client:
        return client.generate_text("ab", max_tokens=3, timeout=SECONDS)


@pytest.mark.parametrize("path", [WATCH, GENERATE])
def test_a_client_that_does_not_read_is_ended(root: Root, path: bytes) -> None:
    message = b"" if path == WATCH else root_pb2.GenerateRequest(prompt="x").SerializeToString()
    raw = Raw(root.address, window=0)
    for _ in range(8):
        raw.call(path, message)
    deadline = time.monotonic() + SECONDS
    while True:
        # They have six of eight places at most, and those for a second only.
        try:
            assert text(root.address)
        except QueueFull:
            assert time.monotonic() < deadline
            continue
        break
    while root.frontend._places._open:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    raw.close()


def test_the_last_places_are_for_others() -> None:
    runner = FakeRunner(gate=threading.Event())
    with Root(runner, max_streams=8) as root, grpc.insecure_channel(root.address) as channel:
        stub = root_pb2_grpc.RootServiceStub(channel)
        watches = [stub.WatchCluster(root_pb2.WatchClusterRequest()) for _ in range(6)]
        for watch in watches:
            next(watch)
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.WatchCluster(root_pb2.WatchClusterRequest()))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "6 streams of this client are open" in str(refused.value.details())
        for watch in watches:
            watch.cancel()


def test_an_unreadable_name_closes_nothing(root: Root) -> None:
    expected_text = text(root.address)
    raw = Raw(root.address)
    kept = Client(root.address)
    for _ in range(20):
        raw.send(frame(HEADERS, 5, raw.stream(), headers(BAD_NAME)))
        assert kept.generate_text("ab", max_tokens=3, timeout=SECONDS) == expected_text
        assert text(root.address) == expected_text
    kept.close()
    raw.close()


def test_unknown_methods_are_unimplemented(root: Root) -> None:
    with grpc.insecure_channel(root.address) as channel:
        for path in ("/hearth.v1.RootService/Nothing", "/x/y", "/"):
            with pytest.raises(grpc.RpcError) as error:
                call: Any = channel.unary_unary(path)
                call(b"", timeout=SECONDS)
            assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_calls_without_a_message_make_room() -> None:
    """By the same client too: 100 calls of one connection, of which none ends by itself."""
    with Root(max_streams=32) as root:
        raw = Raw(root.address)
        for _ in range(60):
            raw.send(frame(HEADERS, 4, raw.stream(), headers(GENERATE)))
        assert text(root.address)
        raw.close()
