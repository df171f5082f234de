"""Weights on their way into real worker processes over loopback: whole, cut, corrupted, refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Never

import grpc
import pytest
from harness import Plan, WorkerProcess, shard_config

from hearth.common.channels import PROTOCOL_VERSION, dial
from hearth.common.errors import Code, HearthError, Reason
from hearth.common.rpc_errors import from_rpc_error
from hearth.root.cluster.streaming import LoadEvent, stream_weights
from hearth.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from hearth.worker.server import WorkerServer

Requests = Iterator[worker_pb2.LoadWeightsRequest]
Start = Callable[..., WorkerProcess]


class Mangling:
    """A channel whose weight requests pass through `change` first, as protobuf reads them."""

    def __init__(self, channel: grpc.Channel, change: Callable[[Requests], Requests]) -> None:
        self._channel = channel
        self._change = change

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[object], bytes],
        response_deserializer: Callable[[bytes], worker_pb2.LoadWeightsResponse],
    ) -> Callable[..., grpc.Call]:
        call = self._channel.stream_stream(
            method,
            request_serializer=worker_pb2.LoadWeightsRequest.SerializeToString,
            response_deserializer=response_deserializer,
        )

        def start(requests: Iterator[object], timeout: float | None) -> grpc.Call:
            read = worker_pb2.LoadWeightsRequest.FromString
            messages = (read(request_serializer(request)) for request in requests)
            return call(self._change(messages), timeout=timeout)

        return start


@contextmanager
def worker_in_process(silence_seconds: float) -> Iterator[str]:
    """The address of a worker of this process."""
    server = WorkerServer("127.0.0.1:0", threads=1, silence_seconds=silence_seconds)
    port = server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


def release(worker: WorkerProcess, plan: Plan, keep_seconds: int = 0) -> None:
    """Ends the plan's lease; its shard is freed, unless it is to be kept."""
    with dial(worker.address) as channel:
        request = worker_pb2.ReleaseRequest(lease=plan.begin.lease, keep_seconds=keep_seconds)
        worker_pb2_grpc.WorkerServiceStub(channel).Release(request, timeout=10)


def load(
    worker: WorkerProcess | str,
    plan: Plan,
    change: Callable[[Requests], Requests] | None = None,
    on_progress: Callable[[LoadEvent], None] = lambda event: None,
) -> worker_pb2.LoadDone:
    address = worker if isinstance(worker, str) else worker.address
    with dial(address) as channel:
        return stream_weights(
            Mangling(channel, change) if change else channel,  # type: ignore[arg-type]
            plan.begin,
            plan.read,
            on_progress,
            worker=address,
            deadline=60,
        )


def describe(worker: WorkerProcess, version: int = PROTOCOL_VERSION) -> worker_pb2.DescribeResponse:
    with dial(worker.address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        return stub.Describe(worker_pb2.DescribeRequest(protocol_version=version), timeout=10)


def wide_plan(epoch: int = 1) -> Plan:
    """Slices of several chunks: w1 has 8 MiB."""
    return Plan(shard_config(hidden=512, layers=1, ffn=4096), epoch=epoch)


class Cut:
    """Cancels the stream 6 MiB into the slice w1, once a part of that is acknowledged."""

    def __init__(self, plan: Plan) -> None:
        self._index = [entry.name for entry in plan.begin.manifest].index("layers.0.w1")
        self._before = sum(data.size for data in plan.slices[: self._index])
        self._acknowledged = threading.Condition()
        self._total = plan.total
        self.acked = 0
        self.sent = 0

    def progress(self, event: LoadEvent) -> None:
        with self._acknowledged:
            self.acked = event.network_bytes
            self._acknowledged.notify_all()

    def change(self, requests: Requests) -> Requests:
        for request in requests:
            if request.chunk.slice == self._index and request.chunk.offset == 6 << 20:
                with self._acknowledged:
                    assert self._acknowledged.wait_for(lambda: self.acked > self._before, 20)
                raise ConnectionError("cut by the test")
            self.sent += len(request.chunk.data)
            yield request

    def check(self, done: worker_pb2.LoadDone) -> None:
        """Nothing acknowledged was sent again, all else was, and it went on within the slice."""
        assert self._before < self.acked <= self.sent < self._total
        assert self._total - self.sent <= done.network_bytes <= self._total - self.acked
        assert done.cache_bytes == self._total - done.network_bytes


def test_a_full_load_then_a_warm_cache(start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("--cache-dir", str(tmp_path / "cache"))
    plan = wide_plan()
    events: list[LoadEvent] = []
    done = load(worker, plan, on_progress=events.append)
    assert (done.network_bytes, done.cache_bytes) == (plan.total, 0)
    assert done.resident_bytes > plan.total
    assert events[-1] == LoadEvent(plan.total, plan.total, 0)
    assert plan.reads == list(range(len(plan.slices)))  # each slice read once, in order

    release(worker, plan)
    warm = wide_plan(epoch=2)
    done = load(worker, warm)
    assert (done.network_bytes, done.cache_bytes) == (0, plan.total)
    assert warm.reads == []  # the model is not even read

    assert worker.end() == 0
    restarted = start_worker("--cache-dir", str(tmp_path / "cache"))
    assert describe(restarted).node.cached_bytes > plan.total
    assert load(restarted, wide_plan()).network_bytes == 0


def test_without_a_cache_everything_travels_each_time(start_worker: Start) -> None:
    worker = start_worker()
    plan = Plan()
    assert load(worker, plan).network_bytes == plan.total
    release(worker, plan)
    assert load(worker, Plan(epoch=2)).network_bytes == plan.total


def test_a_shard_that_goes_on_needs_nothing(start_worker: Start) -> None:
    worker = start_worker()
    plan = Plan()
    load(worker, plan)
    assert load(worker, Plan(epoch=2)).network_bytes == 0
    release(worker, Plan(epoch=2), keep_seconds=60)
    done = load(worker, Plan(epoch=3))
    assert (done.network_bytes, done.pages_epoch) == (0, 0)  # it ran no step


@pytest.mark.parametrize("cached", [True, False])
def test_a_cut_in_mid_slice_goes_on_where_it_was(
    start_worker: Start, tmp_path: Path, cached: bool
) -> None:
    worker = start_worker("--cache-dir", str(tmp_path / "cache") if cached else "none")
    plan = wide_plan()
    cut = Cut(plan)
    with pytest.raises(HearthError, match=worker.address):
        load(worker, plan, cut.change, cut.progress)
    cut.check(load(worker, wide_plan()))  # the same lease, within its grace period


def test_a_cut_survives_the_death_of_the_worker(start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("--cache-dir", str(tmp_path / "cache"))
    plan = wide_plan()
    cut = Cut(plan)
    with pytest.raises(HearthError):
        load(worker, plan, cut.change, cut.progress)
    worker.kill()
    again = start_worker("--cache-dir", str(tmp_path / "cache"))
    cut.check(load(again, wide_plan()))
    assert not list((tmp_path / "cache").glob("*.part"))


def test_death_in_mid_load_names_the_worker(start_worker: Start) -> None:
    worker = start_worker()

    def kill(requests: Requests) -> Requests:
        for number, request in enumerate(requests):
            if number == 3:
                worker.kill()
            yield request

    with pytest.raises(HearthError, match=worker.address) as error:
        load(worker, wide_plan(), kill)
    assert error.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize("times", [1, 3])
def test_a_corrupted_chunk_is_sent_again(start_worker: Start, times: int) -> None:
    plan = wide_plan()
    corrupted = 0

    def corrupt(requests: Requests) -> Requests:
        nonlocal corrupted
        for request in requests:
            if request.chunk.offset == 1 << 20 and corrupted < times:
                corrupted += 1
                request.chunk.data = b"\x00" + request.chunk.data[1:]
            yield request

    worker = start_worker()
    done = load(worker, plan, corrupt)
    assert corrupted == times
    assert plan.total < done.network_bytes <= plan.total + times * (1 << 20)


def test_a_chunk_that_stays_wrong_is_refused_and_named(start_worker: Start) -> None:
    def corrupt(requests: Requests) -> Requests:
        for request in requests:
            if request.HasField("chunk") and request.chunk.slice == 5:
                request.chunk.checksum ^= 1
            yield request

    plan = wide_plan()
    worker = start_worker()
    with pytest.raises(HearthError, match=plan.begin.manifest[5].name) as error:
        load(worker, plan, corrupt)
    assert error.value.reason == Reason.BAD_CHUNK
    assert error.value.metadata["times"] == "4"
    assert load(worker, wide_plan(epoch=2)).network_bytes == plan.total  # the worker lives


def test_a_wrong_digest_is_refused(start_worker: Start, tmp_path: Path) -> None:
    def corrupt(requests: Requests) -> Requests:
        for request in requests:
            if request.chunk.digest:
                request.chunk.digest = bytes(16)
            yield request

    worker = start_worker("--cache-dir", str(tmp_path / "cache"))
    with pytest.raises(HearthError, match="wrong digest 4 times") as error:
        load(worker, Plan(), corrupt)
    assert error.value.reason == Reason.BAD_CHUNK
    assert not list((tmp_path / "cache").glob("*.slice"))


def test_a_corrupt_or_truncated_cache_entry_is_fetched_again(
    start_worker: Start, tmp_path: Path
) -> None:
    worker = start_worker("--cache-dir", str(tmp_path / "cache"))
    plan = wide_plan()
    load(worker, plan)
    flipped, short = (
        tmp_path / "cache" / f"{plan.begin.manifest[index].identity.hex()}.slice"
        for index in (1, 2)
    )
    content = bytearray(flipped.read_bytes())
    content[1000] ^= 4
    flipped.write_bytes(content)
    short.write_bytes(short.read_bytes()[:-7])
    release(worker, plan)
    done = load(worker, wide_plan(epoch=2))
    assert done.network_bytes == plan.slices[1].size + plan.slices[2].size
    assert "do not match the digest" in worker.log.read_text()
    release(worker, wide_plan(epoch=2))
    assert load(worker, wide_plan(epoch=3)).network_bytes == 0


def test_two_workers_share_a_cache(start_worker: Start, tmp_path: Path) -> None:
    workers = [start_worker("--cache-dir", str(tmp_path / "cache")) for _ in range(2)]
    plans = [wide_plan(), wide_plan()]
    failures: list[BaseException] = []

    def run(worker: WorkerProcess, plan: Plan) -> None:
        try:
            load(worker, plan)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(workers, plans, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not list((tmp_path / "cache").glob("*.part"))
    for worker, plan in zip(workers, plans, strict=True):
        release(worker, plan)
        assert load(worker, wide_plan(epoch=2)).network_bytes == 0


def test_a_shard_larger_than_the_cache_limit_loads_all_the_same(
    start_worker: Start, tmp_path: Path
) -> None:
    worker = start_worker("--cache-dir", str(tmp_path / "cache"), "--cache-limit", "6MiB")
    plan = wide_plan()
    assert load(worker, plan).network_bytes == plan.total
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 6 << 20
    assert "continuing without caching" in worker.log.read_text()


def test_another_root_is_told_who_holds_the_worker(start_worker: Start) -> None:
    worker = start_worker("--lease-grace", "0.5")
    load(worker, Plan(root_id="attic"))
    with pytest.raises(HearthError, match="attic") as error:
        load(worker, Plan(root_id="barn"))
    assert error.value.reason == Reason.WORKER_BUSY
    assert describe(worker).held_by == "attic"
    time.sleep(0.7)
    assert describe(worker).held_by == ""
    load(worker, Plan(root_id="barn"))


def test_an_older_epoch_is_stale(start_worker: Start) -> None:
    worker = start_worker()
    load(worker, Plan(epoch=7))
    with pytest.raises(HearthError, match="epoch 6 is over") as error:
        load(worker, Plan(epoch=6))
    assert error.value.reason == Reason.STALE_EPOCH


def test_another_protocol_version_is_refused_with_both_numbers(start_worker: Start) -> None:
    worker = start_worker()
    plan = Plan()
    plan.begin.protocol_version = 99
    with pytest.raises(HearthError, match=rf"99.* {PROTOCOL_VERSION}:") as error:
        load(worker, plan)
    assert error.value.reason == Reason.PROTOCOL_VERSION
    with pytest.raises(grpc.RpcError) as refused:
        describe(worker, version=99)
    assert from_rpc_error(refused.value).reason == Reason.PROTOCOL_VERSION


def test_out_of_memory_is_said_before_anything_is_sent(start_worker: Start) -> None:
    worker = start_worker("--memory-limit", "1MiB")
    plan = wide_plan()
    with pytest.raises(HearthError, match=r"this worker has 1\.0 MiB") as error:
        load(worker, plan)
    assert error.value.reason == Reason.OUT_OF_MEMORY
    assert plan.reads == []
    assert describe(worker).held_by == ""  # a refused plan does not hold the worker


def _absent(plan: Plan) -> None:
    del plan.begin.manifest[3]


def _twice(plan: Plan) -> None:
    plan.begin.manifest.add().CopyFrom(plan.begin.manifest[0])


def _shape(plan: Plan) -> None:
    plan.begin.manifest[1].rows += 1


def _size(plan: Plan) -> None:
    plan.begin.manifest[1].size_bytes = 1 << 62


def _kind(plan: Plan) -> None:
    plan.begin.manifest[1].type = 99  # type: ignore[assignment]


def _foreign(plan: Plan) -> None:
    plan.begin.manifest[1].name = "../../etc/passwd"


def _hidden(plan: Plan) -> None:
    plan.begin.shard.hidden_size = 1 << 31


def _pages(plan: Plan) -> None:
    plan.begin.shard.max_pages = 1 << 30


def _heads(plan: Plan) -> None:
    plan.begin.shard.kinds[0].attention.kv_heads.end = 3


def _rope(plan: Plan) -> None:
    plan.begin.shard.ropes[0].frequencies[0] = float("nan")


def _rank(plan: Plan) -> None:
    plan.begin.placement.rank = 9


@pytest.mark.parametrize(
    "spoil",
    [_absent, _twice, _shape, _size, _kind, _foreign, _hidden, _pages, _heads, _rope, _rank],
)
def test_a_plan_that_cannot_be_is_refused(
    start_worker: Start, spoil: Callable[[Plan], None]
) -> None:
    worker = start_worker()
    plan = Plan()
    spoil(plan)
    with pytest.raises(HearthError) as error:
        load(worker, plan)
    assert error.value.reason == Reason.BAD_SHARD
    assert plan.reads == []
    load(worker, Plan())


def _refusal(worker: WorkerProcess, requests: Requests, timeout: float = 30) -> HearthError:
    with dial(worker.address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            for _ in stub.LoadWeights(requests, timeout=timeout):
                pass
        return from_rpc_error(error.value)


def test_chunks_out_of_place_are_refused(start_worker: Start) -> None:
    worker = start_worker()

    def chunks(*chunk: worker_pb2.WeightChunk) -> Requests:
        yield worker_pb2.LoadWeightsRequest(begin=Plan().begin)
        for item in chunk:
            yield worker_pb2.LoadWeightsRequest(chunk=item)

    for bad in (
        worker_pb2.WeightChunk(slice=1, data=b"x"),
        worker_pb2.WeightChunk(slice=0, offset=1 << 60, data=b"x"),
        worker_pb2.WeightChunk(slice=1 << 31, data=b"x"),
        worker_pb2.WeightChunk(slice=0, data=b""),
        worker_pb2.WeightChunk(slice=0, data=bytes(1 << 20)),
    ):
        assert _refusal(worker, chunks(bad)).reason == Reason.INVALID_ARGUMENT
    early = iter(
        [
            worker_pb2.LoadWeightsRequest(begin=Plan().begin),
            worker_pb2.LoadWeightsRequest(finish=worker_pb2.LoadFinish()),
        ]
    )
    assert "slices are missing" in _refusal(worker, early).message
    no_begin = iter([worker_pb2.LoadWeightsRequest(finish=worker_pb2.LoadFinish())])
    assert _refusal(worker, no_begin).reason == Reason.INVALID_ARGUMENT


@contextmanager
def silent_stream(address: str) -> Iterator[Any]:
    """A LoadWeights call that sends nothing; cancelled in the end."""
    stop = threading.Event()

    def silence() -> Requests:
        stop.wait()
        yield from ()

    with dial(address) as channel:
        call = worker_pb2_grpc.WorkerServiceStub(channel).LoadWeights(silence(), timeout=120)
        try:
            yield call
        finally:
            stop.set()
            call.cancel()


def test_a_silent_stream_holds_nobody_up() -> None:
    with worker_in_process(silence_seconds=3600) as address, silent_stream(address) as silent:
        load(address, Plan())
        assert silent.is_active()


def test_a_silent_stream_is_ended() -> None:
    with worker_in_process(silence_seconds=0.2) as address, silent_stream(address) as silent:
        with pytest.raises(grpc.RpcError) as error:
            next(silent)
        assert from_rpc_error(error.value).reason == Reason.DEADLINE


def test_a_reader_that_fails_ends_the_stream_with_its_own_error(start_worker: Start) -> None:
    worker = start_worker()
    plan = Plan()

    def read(index: int, begin: int, end: int) -> Never:
        raise FileNotFoundError("model.safetensors is gone")

    plan.read = read  # type: ignore[method-assign]
    with pytest.raises(FileNotFoundError, match="is gone"):
        load(worker, plan)
    short = Plan(epoch=2)
    short.slices[4] = short.slices[4][:-1]
    with pytest.raises(HearthError, match=short.begin.manifest[4].name):
        load(worker, short)


def test_release_frees_and_the_cache_stays(start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("--cache-dir", str(tmp_path / "cache"))
    plan = Plan()
    load(worker, plan)
    with dial(worker.address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        stub.Release(worker_pb2.ReleaseRequest(lease=plan.begin.lease), timeout=10)
    info = describe(worker)
    assert (info.held_by, info.epoch) == ("", 0)
    assert info.node.cached_slices == len(plan.slices)
    other = Plan(root_id="barn")
    assert load(worker, other).network_bytes == 0


def test_node_info(start_worker: Start) -> None:
    worker = start_worker("--name", "nas", "--memory-limit", "1GiB")
    node = describe(worker).node
    assert isinstance(node, common_pb2.NodeInfo)
    assert (node.name, node.protocol_version, node.threads) == ("nas", PROTOCOL_VERSION, 1)
    assert node.memory_available_bytes <= 1 << 30 < node.memory_total_bytes
    assert node.instruction_set
    assert node.cores >= 1
