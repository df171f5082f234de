"""Slices into a shard by blocks of rows: what is complete is right, however it came."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xxhash
from harness import Plan, shard_config

from hearth.common.channels import CHUNK_BYTES
from hearth.common.errors import HearthError
from hearth.common.frames import ChunkFrame
from hearth.common.metrics import WorkerMetrics
from hearth.root.cluster import streaming
from hearth.root.cluster.streaming import _Source
from hearth.v1 import worker_pb2
from hearth.worker import packing
from hearth.worker.cache import SliceCache
from hearth.worker.loading import LoadSession
from hearth.worker.packing import Assembly, ShardFiller, block_rows
from hearth.worker.shard import NodeShard

METRICS = WorkerMetrics()


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Its matrices come in several blocks: 20 rows of 256 bytes would fit, 16 are whole groups."""
    monkeypatch.setattr(packing, "_BLOCK_BYTES", 20 * 256)
    monkeypatch.setattr(streaming, "_BLOCK_BYTES", 20 * 256)
    return Plan(shard_config(hidden=64, layers=1, ffn=72))


def step(shard: NodeShard) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((3, shard.config.hidden_size), dtype=np.float32)
    return shard.step(x, [(3, 0, [0])], [2], None).logits


def source(plan: Plan, index: int) -> _Source:
    return _Source(index, plan.begin.manifest[index], plan.read)


def chunks(plan: Plan, index: int, offset: int = 0) -> Iterator[ChunkFrame]:
    """The chunks that the root sends of a slice from `offset` on."""
    slice_ = source(plan, index)
    while offset < plan.slices[index].size:
        chunk = slice_.chunk(offset)
        yield chunk
        offset += chunk.data.nbytes


def test_blocks_are_whole_groups_and_at_most_one_where_rows_are_long() -> None:
    for rows, size, expected in (
        (1, 4096, 512),
        (1000, 4096 * 1000, 512),
        (1000, 4100 * 1000, 504),
        (1000, (5 << 20) * 1000, 8),
    ):
        entry = worker_pb2.SliceEntry(rows=rows, size_bytes=size)
        assert block_rows(entry) == expected


def test_blocks_make_the_shard_that_whole_slices_make(plan: Plan) -> None:
    session = LoadSession(plan.begin, None, METRICS, lambda: 1 << 30)
    pieces = 0
    for need in session.needs().needs.slices:
        for chunk in chunks(plan, need.slice):
            session.accept(chunk)
            pieces += 1
    session.finish()
    assert session.complete
    assert pieces > 3 * len(plan.slices)
    assert np.array_equal(step(session.shard), step(plan.local_shard()))
    session.close()


def test_a_shard_filled_from_files_is_the_same_and_never_holds_a_slice(plan: Plan) -> None:
    shard = NodeShard(plan.config)
    blocks: list[weakref.ref[np.ndarray]] = []
    most = 0

    def read(index: int, begin: int, end: int) -> np.ndarray:
        nonlocal most
        most = max(most, sum(block() is not None for block in blocks))
        block = plan.read(index, begin, end).copy()
        blocks.append(weakref.ref(block))
        return block

    filler = ShardFiller(shard, plan.begin.manifest)
    for index, entry in enumerate(plan.begin.manifest):
        filler.fill(entry, partial(read, index))
    filler.finish()
    filler.close()
    assert not shard.missing()
    assert np.array_equal(step(shard), step(plan.local_shard()))
    assert len(blocks) > len(plan.slices)
    assert most <= 2  # one being packed, and the one before where its memory is not given back yet


def test_a_slice_that_cannot_be_packed_fails_the_filling(plan: Plan) -> None:
    filler = ShardFiller(NodeShard(plan.config), plan.begin.manifest)
    entry = next(entry for entry in plan.begin.manifest if entry.name == "norm")  # of one row
    filler.fill(entry, lambda begin, end: np.zeros(3, dtype=np.uint8))
    with pytest.raises(HearthError, match=entry.name):
        filler.finish()
    filler.close()


@pytest.mark.parametrize("size", [1, 255, 4096, 4097, 100_000])
def test_an_assembly_takes_pieces_of_any_size(plan: Plan, size: int) -> None:
    shard = NodeShard(plan.config)
    filler = ShardFiller(shard, plan.begin.manifest)
    for index, (entry, data) in enumerate(zip(plan.begin.manifest, plan.slices, strict=True)):
        assembly = Assembly(filler, index, entry)
        for offset in range(0, data.size, size):
            assembly.add(data[offset : offset + size].data)
        assert assembly.digest() == xxhash.xxh3_128_digest(data.data)
        assert entry.name in shard.missing()  # until its content has been found right
        assembly.finish()
    filler.finish()
    filler.close()
    assert np.array_equal(step(shard), step(plan.local_shard()))


def test_a_wrong_digest_begins_again_after_blocks_were_packed(plan: Plan) -> None:
    session = LoadSession(plan.begin, None, METRICS, lambda: 1 << 30)
    for place, need in enumerate(session.needs().needs.slices):
        if place == 2:  # right checksums of wrong bytes: what the root's disk may do
            good = plan.slices[need.slice]
            plan.slices[need.slice] = good ^ np.uint8(1)
            *first, last = chunks(plan, need.slice)
            for chunk in first:
                session.accept(chunk)
            wrong = ChunkFrame(last.slice, last.offset, last.data, last.checksum, bytes(16))
            answer = session.accept(wrong)
            assert answer is not None
            assert (answer.reject.offset, answer.reject.reason) == (0, "digest")
            plan.slices[need.slice] = good
        for chunk in chunks(plan, need.slice):
            session.accept(chunk)
    session.finish()
    assert np.array_equal(step(session.shard), step(plan.local_shard()))
    session.close()


def test_a_slice_that_is_wrong_in_the_cache_comes_from_the_root(plan: Plan, tmp_path: Path) -> None:
    def load() -> LoadSession:
        session = LoadSession(plan.begin, SliceCache(tmp_path), METRICS, lambda: 1 << 30)
        list(session.read_cache())
        sent.append([need.slice for need in session.needs().needs.slices])
        for index in sent[-1]:
            for chunk in chunks(plan, index):
                session.accept(chunk)
        session.finish()
        return session

    sent: list[list[int]] = []
    load().close()
    path = tmp_path / f"{plan.begin.manifest[3].identity.hex()}.slice"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8  # blocks before and after it are packed before that shows
    path.write_bytes(content)
    session = load()
    assert sent == [list(range(len(plan.slices))), [3]]
    assert np.array_equal(step(session.shard), step(plan.local_shard()))
    session.close()


@pytest.mark.parametrize("offset", [1, 4096, 5000, 18431])
def test_a_slice_is_gone_on_with_at_any_byte(plan: Plan, offset: int) -> None:
    index = next(i for i, data in enumerate(plan.slices) if data.size == 18432)
    data = plan.slices[index]
    sent = list(chunks(plan, index, offset))
    assert b"".join(bytes(chunk.data) for chunk in sent) == data[offset:].tobytes()
    assert sent[-1].digest == xxhash.xxh3_128_digest(data.data)


def test_a_chunk_that_is_sent_again_counts_once_in_the_digest(plan: Plan) -> None:
    index = next(i for i, data in enumerate(plan.slices) if data.size == 18432)
    slice_ = source(plan, index)
    offsets = []
    offset = 0
    while offset < 18432:
        offsets.append(offset)
        offset += slice_.chunk(offset).data.nbytes
    again = [slice_.chunk(offset) for offset in offsets[1:]]
    assert again[-1].digest == xxhash.xxh3_128_digest(plan.slices[index].data)
    assert max(chunk.data.nbytes for chunk in again) <= CHUNK_BYTES


def test_rows_that_the_model_does_not_give_are_an_error(plan: Plan) -> None:
    entry = plan.begin.manifest[0]
    short = _Source(0, entry, lambda index, begin, end: np.zeros(8, dtype=np.uint8))
    with pytest.raises(HearthError, match=entry.name):
        short.chunk(0)
