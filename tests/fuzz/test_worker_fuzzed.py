"""Messages to a worker in any order, of any content: weight loading, steps, files of its cache.

Every stream ends in success or with one of Hearth's errors, and the worker computes the same
results afterwards.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import fuzzing
import grpc
import numpy as np
import pytest
import xxhash
from fuzzing import EDGES, Draw, bounded, damaged, fuzzed
from google.protobuf.message import DecodeError, Message
from harness import MemorySink, Plan, shard_config
from hypothesis import given
from hypothesis import strategies as st

from hearth.common import wire
from hearth.common.channels import CHUNK_BYTES, PROTOCOL_VERSION, dial
from hearth.common.errors import HearthError
from hearth.common.frames import ChunkFrame, decode_forward, decode_request, encode_request
from hearth.common.metrics import WorkerMetrics
from hearth.common.rpc_errors import from_rpc_error
from hearth.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from hearth.worker.cache import SliceCache
from hearth.worker.loading import LoadSession
from hearth.worker.server import WorkerServer

SMALL = shard_config(hidden=32, layers=1, ffn=32)
PLAN = Plan(SMALL)
METRICS = WorkerMetrics()
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, 16, 17, 32, 33, *(e for e in EDGES if e >= 0)])


def u32(number: int) -> int:
    return number & 0xFFFFFFFF


U32 = NUMBERS.map(u32)


def u64(number: int) -> int:
    return number & 0xFFFFFFFFFFFFFFFF


# -- configurations and manifests ------------------------------------------------------------------


def change_a_field(draw: Draw, message: Message) -> None:
    """Gives one field of a message, or of a message within it, another value."""
    field = draw(st.sampled_from([*message.DESCRIPTOR.fields]))
    value = getattr(message, field.name)
    if field.message_type is not None and field.is_repeated:
        count = draw(st.integers(0, len(value)))
        if count == len(value):
            value.add()
        elif draw(st.booleans()):
            del value[count]
        else:
            change_a_field(draw, value[count])
    elif field.message_type is not None:
        change_a_field(draw, value)
    elif field.is_repeated:
        del value[draw(st.integers(0, len(value))) :]
        floats = field.type == field.TYPE_FLOAT
        value.extend(draw(st.lists(st.floats(width=32) if floats else U32, max_size=20)))
    elif field.type == field.TYPE_BOOL:
        setattr(message, field.name, draw(st.booleans()))
    elif field.type == field.TYPE_FLOAT:
        setattr(message, field.name, draw(st.floats(width=32)))
    elif field.type == field.TYPE_ENUM:
        setattr(message, field.name, draw(st.integers(-1, 5)))
    else:
        setattr(message, field.name, draw(U32))


def changed_begin(draw: Draw) -> worker_pb2.LoadBegin:
    """A LoadBegin with other numbers in its shard, its manifest and its lease."""
    begin = worker_pb2.LoadBegin()
    begin.CopyFrom(PLAN.begin)
    for _ in range(draw(st.integers(0, 3))):
        change_a_field(draw, begin.shard)
    for _ in range(draw(st.integers(0, 2))):
        entry = begin.manifest[draw(st.integers(0, len(begin.manifest) - 1))]
        what = draw(st.sampled_from(["rows", "columns", "size_bytes", "type", "name", "identity"]))
        if what in ("rows", "columns"):
            setattr(entry, what, u32(draw(NUMBERS)))
        elif what == "size_bytes":
            entry.size_bytes = u64(draw(NUMBERS))
        elif what == "type":
            entry.type = draw(st.integers(-1, 6))
        elif what == "name":
            entry.name = draw(st.text(max_size=8) | st.sampled_from(["norm", "layers.9.wq"]))
        else:
            entry.identity = draw(st.binary(max_size=70))
    if draw(st.integers(0, 5)) == 0:
        begin.manifest.add(name=draw(st.text(max_size=5)), type=1)
    return begin


@fuzzed(9, 40)
@given(data=st.data())
def test_any_plan(data: st.DataObject) -> None:
    begin = changed_begin(data.draw)
    with bounded():
        try:
            session = LoadSession(begin, None, METRICS, lambda: 64 << 20)
        except HearthError as error:
            assert error.message
            return
        session.needs()
        session.close()


# -- chunks ----------------------------------------------------------------------------------------


def right_chunks(session: LoadSession) -> list[ChunkFrame]:
    """The messages that a correct root would send next, in chunks of 1,000 bytes."""
    chunks = []
    for need in session.needs().needs.slices:
        data = PLAN.slices[need.slice]
        for offset in range(need.offset, len(data), 1000):
            part = data[offset : offset + 1000]
            last = offset + 1000 >= len(data)
            digest = xxhash.xxh3_128_digest(data.data) if last else b""
            checksum = xxhash.xxh3_64_intdigest(part.data)
            chunks.append(ChunkFrame(need.slice, offset, part.data, checksum, digest))
    return chunks


def other_chunk(draw: Draw, chunk: ChunkFrame) -> ChunkFrame:
    what = draw(st.sampled_from(["slice", "offset", "data", "checksum", "digest", "size"]))
    slice_, offset, data = chunk.slice, chunk.offset, chunk.data
    checksum, digest = chunk.checksum, chunk.digest
    if what == "slice":
        slice_ = u32(draw(NUMBERS))
    elif what == "offset":
        offset = u64(draw(NUMBERS))
    elif what == "data":
        data = memoryview(damaged(draw, bytes(data)))
    elif what == "checksum":
        checksum = u64(draw(NUMBERS))
    elif what == "digest":
        digest = draw(st.binary(max_size=20))
    else:
        data = memoryview(bytes(draw(st.sampled_from([0, 1, 999, 1001, CHUNK_BYTES + 1]))))
        if draw(st.booleans()):
            checksum = xxhash.xxh3_64_intdigest(data)
    return ChunkFrame(slice_, offset, data, checksum, digest)


@fuzzed(7, 25)
@given(data=st.data())
def test_chunks(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "chunk-cache"
    cached = data.draw(st.booleans())
    bad = data.draw(st.lists(st.integers(0, 40), max_size=4, unique=True))
    with bounded(), ExitStack() as files:
        cache = files.enter_context(closing(SliceCache(folder))) if cached else None
        for path in folder.glob("*") if cached else ():
            path.unlink()
        session = LoadSession(PLAN.begin, cache, METRICS, lambda: 1 << 30)
        try:
            send(data.draw, session, set(bad))
            session.finish()
            assert session.complete
        except HearthError as error:
            assert error.message
        finally:
            session.close()
        if cached:  # nothing wrong was kept
            for entry, content in zip(PLAN.begin.manifest, PLAN.slices, strict=True):
                sink = MemorySink()
                assert cache is not None
                if cache.read(entry.identity, entry.size_bytes, sink):
                    assert sink.data == content.tobytes()


def send(draw: Draw, session: LoadSession, bad: set[int]) -> None:
    """Chunks as they are due; at the places of `bad` another one, or a new stream's beginning."""
    for attempt in itertools.count():
        chunks = right_chunks(session)
        if not chunks or attempt > 8:
            return
        for place, chunk in enumerate(chunks):
            if place in bad:
                bad.discard(place)
                what = draw(st.sampled_from(["other", "other", "skip", "twice", "again"]))
                if what == "again":
                    break
                if what == "twice":
                    session.accept(chunk)
                if what != "skip":
                    chunk = other_chunk(draw, chunk) if what == "other" else chunk
                    answer = session.accept(chunk)
                    if answer is not None and answer.HasField("reject"):
                        break
                continue
            session.accept(chunk)


RAW = [
    encode_request(
        ChunkFrame(3, 1000, PLAN.slices[1][:40].data, xxhash.xxh3_64_intdigest(b""), bytes(16))
    ),
    worker_pb2.LoadWeightsRequest(begin=PLAN.begin).SerializeToString(),
]


@fuzzed(8, 60)
@given(data=st.data())
def test_load_messages_are_read_as_protobuf_reads_them(data: st.DataObject) -> None:
    raw = damaged(data.draw, data.draw(st.sampled_from(RAW)))
    with bounded():
        try:
            expected: worker_pb2.LoadWeightsRequest | None
            expected = worker_pb2.LoadWeightsRequest.FromString(raw)
        except DecodeError:
            expected = None
        try:
            got = decode_request(raw)
        except DecodeError:
            assert expected is None
            return
        assert expected is not None
        if not isinstance(got, ChunkFrame):
            assert got.SerializeToString(deterministic=True) == expected.SerializeToString(
                deterministic=True
            )
            return
        chunk = expected.chunk
        assert (got.slice, got.offset, bytes(got.data), got.checksum, got.digest) == (
            chunk.slice,
            chunk.offset,
            chunk.data,
            chunk.checksum,
            chunk.digest,
        )


# -- the cache's files -----------------------------------------------------------------------------


@fuzzed(6, 30)
@given(data=st.data())
def test_files_of_the_cache(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "slices"
    content = np.frombuffer(bytes(range(256)) * 3, dtype=np.uint8)
    identity = b"\x07" * 16
    for path in folder.glob("*"):
        path.unlink() if path.is_file() else path.rmdir()
    with bounded(), closing(SliceCache(folder)) as cache:
        part = cache.part(identity, content.size)
        assert part is not None
        part.write(0, content.data)
        part.finish(xxhash.xxh3_128_digest(content.data))
        (path,) = folder.glob("*.slice")
        what = data.draw(st.sampled_from(["damaged", "part", "folder", "gone", "whole"]))
        if what == "damaged":
            path.write_bytes(damaged(data.draw, path.read_bytes()))
        elif what == "part":
            path.rename(path.with_suffix(".part"))
            path.with_suffix(".part").write_bytes(damaged(data.draw, content.tobytes()))
        elif what in ("folder", "gone"):
            path.unlink()
            if what == "folder":
                path.mkdir()
        sink = MemorySink()
        if cache.read(identity, content.size, sink):
            assert sink.data == content.tobytes()
        else:
            assert what != "whole"
        cache.usage()
        assert cache.has_part(identity) == (what == "part")
        # A later stream goes on with what is there, and what comes of it is right or not kept.
        again = cache.part(identity, content.size)
        if again is not None:
            left = MemorySink()
            again.read(left, content.size - 1)
            assert len(left.data) < content.size
            again.write(0, content.data)
            try:
                again.finish(xxhash.xxh3_128_digest(content.data))
            except OSError:
                again.close()  # a folder in its place
                return
            sink = MemorySink()
            assert cache.read(identity, content.size, sink)
            assert sink.data == content.tobytes()


# -- streams on a worker ---------------------------------------------------------------------------


class Worker:
    """A worker in this process, with a plan loaded, and what its steps should give."""

    def __init__(self) -> None:
        self.server = WorkerServer("127.0.0.1:0", threads=1, lease_grace=60.0)
        self.channel = dial(f"127.0.0.1:{self.server.start()}")
        self.stub = worker_pb2_grpc.WorkerServiceStub(self.channel)
        self.epoch = 0
        self.begin_anew()
        shard = PLAN.local_shard()
        self.x = np.random.default_rng(1).standard_normal((2, 32), dtype=np.float32)
        self.expected = shard.step(self.x, [(2, 0, [1])], [1], None).logits

    @property
    def lease(self) -> worker_pb2.Lease:
        return worker_pb2.Lease(root_id="a", root_name="a", epoch=self.epoch)

    def begin_anew(self) -> None:
        """Loads the plan under a new epoch."""
        self.epoch += 1
        begin = worker_pb2.LoadBegin()
        begin.CopyFrom(PLAN.begin)
        begin.lease.CopyFrom(self.lease)
        requests = [worker_pb2.LoadWeightsRequest(begin=begin)]
        for index, data in enumerate(PLAN.slices):
            chunk = worker_pb2.WeightChunk(
                slice=index,
                data=data.tobytes(),
                checksum=xxhash.xxh3_64_intdigest(data.data),
                digest=xxhash.xxh3_128_digest(data.data),
            )
            requests.append(worker_pb2.LoadWeightsRequest(chunk=chunk))
        requests.append(worker_pb2.LoadWeightsRequest(finish=worker_pb2.LoadFinish()))
        answers = list(self.stub.LoadWeights(iter(requests), timeout=30))
        assert answers[-1].HasField("done")

    def step(self, step_id: int = 1) -> worker_pb2.Step:
        step = worker_pb2.Step(
            step_id=step_id,
            activations=wire.encode(self.x, common_pb2.SYNC_TYPE_F32),
            activation_type=common_pb2.SYNC_TYPE_F32,
            output_rows=[1],
        )
        step.sequences.add(rows=2, position=0, sequence_id=7, new_pages=[1])
        return step

    def forward(self, messages: list[bytes]) -> tuple[int, HearthError | None]:
        """Sends raw messages after the opening; answers that came, and how the stream ended."""
        call = self.channel.stream_stream(
            "/hearth.v1.WorkerService/Forward",
            request_serializer=bytes,
            response_deserializer=worker_pb2.ForwardResponse.FromString,
        )
        opening = worker_pb2.ForwardRequest(open=worker_pb2.ForwardOpen(lease=self.lease))
        answers = 0
        try:
            for _ in call(iter([opening.SerializeToString(), *messages]), timeout=30):
                answers += 1
        except grpc.RpcError as error:
            return answers, from_rpc_error(error)
        return answers, None

    def check(self) -> None:
        """A step still gives what it should; gRPC may refuse streams while many others end."""
        for left in range(10, -1, -1):
            try:
                self.check_once()
                return
            except grpc.RpcError as error:
                if not left or from_rpc_error(error).reason != "UNREACHABLE":
                    raise
                time.sleep(0.2)

    def check_once(self) -> None:
        """As check, at the first attempt."""
        sync = [worker_pb2.SyncFrame() for _ in range(2)]
        out: list[worker_pb2.ForwardRequest] = [
            worker_pb2.ForwardRequest(open=worker_pb2.ForwardOpen(lease=self.lease)),
            worker_pb2.ForwardRequest(step=self.step()),
        ]
        ready = threading.Semaphore(len(out))

        def requests() -> Iterator[worker_pb2.ForwardRequest]:
            while ready.acquire(timeout=30) and out:
                yield out.pop(0)

        for response in self.stub.Forward(requests(), timeout=30):
            if response.HasField("sync"):
                sync.pop()
                out.append(worker_pb2.ForwardRequest(sync=response.sync))
                ready.release()
            elif response.HasField("result"):
                got = wire.decode(response.result.logits, common_pb2.SYNC_TYPE_F32, 1, 256)
                assert np.array_equal(got, self.expected)
                ready.release()
        assert not sync


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.channel.close()
    worker.server.stop(1.0)


def changed_step(draw: Draw, worker: Worker) -> worker_pb2.Step:
    step = worker.step()
    for _ in range(draw(st.integers(0, 3))):
        what = draw(
            st.sampled_from(
                ["id", "rows", "position", "pages", "tables", "type", "outputs", "best", "more"]
            )
        )
        first = step.sequences[0]
        if what == "id":
            step.step_id = u64(draw(NUMBERS))
        elif what == "rows":
            first.rows = u32(draw(NUMBERS))
        elif what == "position":
            first.position = u32(draw(NUMBERS))
        elif what == "pages":
            first.new_pages[:] = [u32(page) for page in draw(st.lists(NUMBERS, max_size=20))]
            first.kept_pages = u32(draw(NUMBERS))
        elif what == "tables":
            first.sequence_id = u64(draw(NUMBERS))
            step.ended[:] = [u64(seq_id) for seq_id in draw(st.lists(NUMBERS, max_size=3))]
            step.reset = draw(st.booleans())
        elif what == "type":
            step.activation_type = draw(st.integers(-1, 5))
        elif what == "outputs":
            step.output_rows[:] = [u32(row) for row in draw(st.lists(NUMBERS, max_size=5))]
        elif what == "best":
            step.candidates.count = u32(draw(NUMBERS))
            for row in draw(st.lists(NUMBERS, max_size=3)):
                size = draw(st.sampled_from([0, 4, 32, 300]))
                step.candidates.allowed.add(row=u32(row), bits=bytes(size))
            for row in draw(st.lists(NUMBERS, max_size=3)):
                step.candidates.draws.add(
                    row=u32(row),
                    temperature=draw(st.floats(width=32)),
                    seed=u64(draw(NUMBERS)),
                    number=u64(draw(NUMBERS)),
                    nucleus=draw(st.booleans()),
                )
        else:
            other = draw(st.sampled_from([0, 7, 8, 9]))
            step.sequences.add(
                rows=u32(draw(NUMBERS)), position=0, sequence_id=other, new_pages=[1]
            )
            size = sum(item.rows for item in step.sequences)
            if size <= 40:
                step.activations = bytes(size * 32 * 4)
    if draw(st.integers(0, 3)) == 0:
        step.activations = draw(
            st.binary(max_size=300) | st.just(np.full(64, np.nan, np.float32).tobytes())
        )
    return step


def any_message(draw: Draw, worker: Worker) -> bytes:
    kind = draw(st.sampled_from(["step", "step", "step", "sync", "mesh", "open", "raw"]))
    request = worker_pb2.ForwardRequest()
    if kind == "step":
        request.step.CopyFrom(changed_step(draw, worker))
    elif kind == "sync":
        size = draw(st.sampled_from([0, 4, 128, 256, 256, 256, 257]))
        request.sync.CopyFrom(
            worker_pb2.SyncFrame(
                step_id=draw(st.sampled_from([0, 1, 1, 1, 2])),
                index=draw(st.sampled_from([0, 0, 1, 1, 2])),
                data=bytes(size),
            )
        )
    elif kind == "mesh":
        request.mesh_open.addresses.extend(draw(st.lists(st.text(max_size=9), max_size=3)))
        request.mesh_open.session_key = bytes(draw(st.sampled_from([0, 31, 32])))
        request.mesh_open.deadline_seconds = draw(st.floats())
        request.mesh_open.stage_ranks.extend(draw(st.lists(st.integers(0, 3), max_size=3)))
    elif kind == "open":
        request.open.lease.CopyFrom(worker.lease)
    raw = request.SerializeToString()
    if kind == "raw":
        raw = damaged(draw, worker_pb2.ForwardRequest(step=worker.step()).SerializeToString())
    return raw


@fuzzed(7, 40)
@given(data=st.data())
def test_any_messages_on_a_forward_stream(worker: Worker, data: st.DataObject) -> None:
    messages = [any_message(data.draw, worker) for _ in range(data.draw(st.integers(1, 5)))]
    # gRPC's threads come and go: descriptors and address space are looked at in test_ports.py.
    fuzzing.examples += 1
    answers, error = worker.forward(messages)
    assert answers <= 2 * len(messages) + 2
    if error is not None:
        assert error.message
        assert error.reason != "INTERNAL", error.message
    if data.draw(st.integers(0, 9)) == 0:
        worker.check()


def test_the_worker_gives_the_same_numbers_after_all_that(worker: Worker) -> None:
    worker.check()


BEGIN = worker_pb2.LoadWeightsRequest(begin=PLAN.begin)


@fuzzed(4, 20)
@given(data=st.data())
def test_any_messages_on_a_load_stream(worker: Worker, data: st.DataObject) -> None:
    fuzzing.examples += 1
    messages: list[bytes] = []
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["begin", "chunk", "finish", "raw"]))
        request = worker_pb2.LoadWeightsRequest()
        if kind == "begin":
            request.begin.CopyFrom(changed_begin(data.draw))
            request.begin.lease.epoch = u64(data.draw(st.sampled_from([0, worker.epoch, 1 << 63])))
            request.begin.lease.root_id = data.draw(st.sampled_from(["a", "b", ""]))
        elif kind == "chunk":
            request.chunk.CopyFrom(worker_pb2.WeightChunk(slice=1, data=b"abc", checksum=1))
        elif kind == "finish":
            request.finish.SetInParent()
        raw = request.SerializeToString()
        messages.append(damaged(data.draw, raw) if kind == "raw" and raw else raw)
    call = worker.channel.stream_stream(
        "/hearth.v1.WorkerService/LoadWeights",
        request_serializer=bytes,
        response_deserializer=worker_pb2.LoadWeightsResponse.FromString,
    )
    try:
        list(call(iter(messages), timeout=30))
    except grpc.RpcError as error:
        found = from_rpc_error(error)
        assert found.message
        assert found.reason != "INTERNAL", found.message
    ask = worker_pb2.DescribeRequest(protocol_version=PROTOCOL_VERSION)
    held = worker.stub.Describe(ask, timeout=10)
    if held.epoch != worker.epoch:  # a stream took the lease: the plan of before is gone
        lease = worker_pb2.Lease(root_id="a", epoch=held.epoch)
        worker.stub.Release(worker_pb2.ReleaseRequest(lease=lease), timeout=10)
        worker.epoch = 0
        worker.begin_anew()


def test_streams_of_unreadable_messages_end(worker: Worker) -> None:
    """Left to gRPC such calls never end, and after 32 of them the connection takes no others."""
    named = 0
    for _ in range(100):
        _, error = worker.forward([b"\x12\xff\xff"] * 4)
        assert error is not None
        # gRPC may refuse a stream while many others end.
        assert error.reason == "UNREACHABLE" or "malformed message" in error.message
        named += "malformed message" in error.message
    assert named > 32
    worker.check()


def test_forward_messages_that_are_too_much(worker: Worker) -> None:
    for raw in (b"\x12" + b"\x80\x80\x80\x01" + b"\x12\x00" * (1 << 20), bytes(70 << 20)):
        _, error = worker.forward([raw])
        assert error is not None
    worker.check()


def decode(raw: bytes) -> Any:
    try:
        return decode_forward(raw)
    except DecodeError:
        return None


@fuzzed(2, 30)
@given(data=st.data())
def test_forward_messages_are_read_as_protobuf_reads_them(
    data: st.DataObject, worker: Worker
) -> None:
    raw = damaged(data.draw, worker_pb2.ForwardRequest(step=worker.step()).SerializeToString())
    with bounded():
        try:
            expected: Any = worker_pb2.ForwardRequest.FromString(raw)
        except DecodeError:
            expected = None
        if expected is not None and expected.check:
            expected = None  # no sender made these bytes
        got = decode(raw)
        assert (got is None) == (expected is None)
        if got is not None:
            assert got.SerializeToString() == expected.SerializeToString()


def test_a_cache_folder_with_anything_in_it(tmp_path: Path) -> None:
    (tmp_path / "x.slice").mkdir()
    (tmp_path / "y.part").symlink_to("nowhere")
    (tmp_path / "z").write_text("")
    cache = SliceCache(tmp_path, 1 << 20)
    cache.usage()
    part = cache.part(b"\x01" * 16, 100)
    assert part is not None
    part.close()
