"""Progress of a worker that loads: messages alone are none, and nothing goes on without end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from harness import Plan, served

from hearth.common.channels import dial
from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.streaming import stream_weights
from hearth.v1 import worker_pb2, worker_pb2_grpc

Answer = worker_pb2.LoadWeightsResponse
Requests = Iterator[worker_pb2.LoadWeightsRequest]
Answers = Iterator[Answer]
STALL = 0.3


class Loader(worker_pb2_grpc.WorkerServiceServicer):
    """Answers a weight stream with a script."""

    def __init__(self, script: Callable[[Requests], Answers]) -> None:
        self._script = script

    def LoadWeights(  # noqa: N802
        self, request_iterator: Requests, context: grpc.ServicerContext
    ) -> Answers:
        yield from self._script(request_iterator)


def failure(script: Callable[[Requests], Answers]) -> HearthError:
    """The error of loading a small plan, before its deadline."""
    plan = Plan()
    service = Loader(script)  # type: ignore[abstract]
    with served(service) as address, dial(address) as channel, pytest.raises(HearthError) as error:
        stream_weights(
            channel,
            plan.begin,
            plan.read,
            worker="nas",
            deadline=60,
            stall_seconds=STALL,
        )
    assert "worker nas" in error.value.message
    return error.value


def progress(cache_bytes: int) -> Answer:
    return Answer(progress=worker_pb2.LoadProgress(cache_bytes=cache_bytes))


def needs(*slices: int) -> Answer:
    made = [worker_pb2.SliceNeed(slice=index) for index in slices]
    return Answer(needs=worker_pb2.LoadNeeds(slices=made))


def silent(requests: Requests) -> Answers:
    for _ in requests:
        yield from ()


def chatty(requests: Requests) -> Answers:
    while True:
        yield progress(0)
        time.sleep(0.01)


def trickling(requests: Requests) -> Answers:
    """A byte at a time: less than is due."""
    while True:
        yield progress(1)
        time.sleep(0.01)


def unacknowledged(requests: Requests) -> Answers:
    yield needs(0, 1)
    for _ in requests:
        yield progress(0)


@pytest.mark.parametrize("script", [silent, chatty, trickling, unacknowledged])
def test_a_worker_without_progress_is_unfit(script: Callable[[Requests], Answers]) -> None:
    error = failure(script)
    assert error.reason == Reason.WORKER_UNFIT
    assert f"made no progress for {STALL:g} s" in error.message
    assert "--stall-seconds" in error.message


def boasting(requests: Requests) -> Answers:
    while True:
        yield progress(1 << 20)


def empty(requests: Requests) -> Answers:
    while True:
        yield Answer()


def needing(requests: Requests) -> Answers:
    yield needs(10_000)


def rejecting(requests: Requests) -> Answers:
    """Acknowledges each chunk, and wants it again."""
    yield needs(0)
    for request in requests:
        if not request.HasField("begin"):
            chunk = request.chunk
            end = chunk.offset + len(chunk.data)
            yield Answer(ack=worker_pb2.ChunkAck(slice=chunk.slice, held_bytes=end))
            yield Answer(reject=worker_pb2.ChunkReject(slice=chunk.slice, offset=chunk.offset))


@pytest.mark.parametrize("script", [boasting, empty, needing])
def test_a_worker_that_violates_the_protocol_is_unfit(
    script: Callable[[Requests], Answers],
) -> None:
    error = failure(script)
    assert error.reason == Reason.WORKER_UNFIT
    assert "violated the protocol" in error.message


def test_a_worker_that_rejects_what_it_has_is_unfit() -> None:
    """By the bytes that it wants, or by the time."""
    assert failure(rejecting).reason == Reason.WORKER_UNFIT
