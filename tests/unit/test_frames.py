"""Chunks without copies are the messages that protobuf writes and reads, whatever the bytes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from hearth.common.frames import (
    MAX_BEGIN_BYTES,
    MAX_STRUCTURE_BYTES,
    ChangedError,
    ChunkFrame,
    decode_forward,
    decode_forward_response,
    decode_request,
    encode_forward,
    encode_request,
)
from hearth.v1 import common_pb2, worker_pb2

_chunks = st.builds(
    worker_pb2.WeightChunk,
    slice=st.integers(0, 2**32 - 1),
    offset=st.integers(0, 2**64 - 1),
    data=st.binary(max_size=300),
    checksum=st.integers(0, 2**64 - 1),
    digest=st.one_of(st.just(b""), st.binary(min_size=16, max_size=16)),
)


def as_chunk(frame: ChunkFrame) -> worker_pb2.WeightChunk:
    return worker_pb2.WeightChunk(
        slice=frame.slice,
        offset=frame.offset,
        data=bytes(frame.data),
        checksum=frame.checksum,
        digest=frame.digest,
    )


@given(_chunks)
def test_protobuf_reads_what_is_written(chunk: worker_pb2.WeightChunk) -> None:
    view = memoryview(chunk.data)
    frame = ChunkFrame(chunk.slice, chunk.offset, view, chunk.checksum, chunk.digest)
    assert worker_pb2.LoadWeightsRequest.FromString(encode_request(frame)).chunk == chunk


@given(_chunks)
def test_what_protobuf_writes_is_read(chunk: worker_pb2.WeightChunk) -> None:
    raw = worker_pb2.LoadWeightsRequest(chunk=chunk).SerializeToString()
    frame = decode_request(raw)
    assert isinstance(frame, ChunkFrame)
    assert as_chunk(frame) == chunk


def test_fields_may_come_in_any_order() -> None:
    data = worker_pb2.WeightChunk(data=b"abc").SerializeToString()
    offset = worker_pb2.WeightChunk(offset=300).SerializeToString()
    raw = bytes([0x12, len(data) + len(offset)]) + data + offset
    assert decode_request(raw) == ChunkFrame(0, 300, memoryview(b"abc"), 0)


def test_other_messages_are_protobufs() -> None:
    for message in (
        worker_pb2.LoadWeightsRequest(finish=worker_pb2.LoadFinish()),
        worker_pb2.LoadWeightsRequest(begin=worker_pb2.LoadBegin(protocol_version=7)),
        worker_pb2.LoadWeightsRequest(),
    ):
        assert decode_request(encode_request(message)) == message


@given(_chunks, st.data())
def test_any_bytes_read_as_protobuf_reads_them(
    chunk: worker_pb2.WeightChunk, data: st.DataObject
) -> None:
    raw = bytearray(worker_pb2.LoadWeightsRequest(chunk=chunk).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    try:
        expected = worker_pb2.LoadWeightsRequest.FromString(bytes(raw))
    except DecodeError:
        expected = None
    try:
        got = decode_request(bytes(raw))
    except DecodeError:
        got = None
    if isinstance(got, ChunkFrame):
        assert expected is not None
        expected.DiscardUnknownFields()  # protobuf keeps them, a frame has no place for them
        assert expected.chunk == as_chunk(got)
    else:
        assert got == expected


def field(number: int, data: bytes) -> bytes:
    size, head = len(data), bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(head) + bytes([size]) + data


@pytest.mark.parametrize(
    "raw",
    [
        field(2, field(2, b"") * (MAX_STRUCTURE_BYTES // 2)),  # sequences of a step
        field(2, field(2, field(3, bytes(MAX_STRUCTURE_BYTES + 9)))),  # pages of one
        field(5, field(1, b"") * (MAX_STRUCTURE_BYTES // 2 + 1)),  # addresses of a mesh
        field(2, b"") * (MAX_STRUCTURE_BYTES // 2 + 1),
        field(2, bytes(MAX_STRUCTURE_BYTES)),
        field(2, b"\x1a\xff\xff\xff\xff\x7f" + bytes(MAX_STRUCTURE_BYTES)),
    ],
)
def test_what_would_unpack_into_much_is_not_unpacked(raw: bytes) -> None:
    with pytest.raises(DecodeError, match="besides the payload"):
        decode_forward(raw)


def test_a_large_manifest_is_not_unpacked() -> None:
    raw = field(1, field(5, b"") * (MAX_BEGIN_BYTES // 2))
    with pytest.raises(DecodeError, match="bytes of weight loading"):
        decode_request(raw)


def test_large_steps_and_syncs_are_read() -> None:
    payload = bytes(3 * MAX_STRUCTURE_BYTES)
    step = worker_pb2.Step(
        step_id=1 << 40, activations=payload, activation_type=common_pb2.SYNC_TYPE_F32
    )
    for _ in range(128):
        step.sequences.add(rows=1, position=100_000, new_pages=range(8000, 12000))
    for request in (
        worker_pb2.ForwardRequest(step=step),
        worker_pb2.ForwardRequest(sync=worker_pb2.SyncFrame(step_id=3, index=4, data=payload)),
    ):
        assert decode_forward(request.SerializeToString()) == request
        assert decode_forward(encode_forward(request)) == request
    response = worker_pb2.ForwardResponse(result=worker_pb2.StepResult(logits=payload))
    assert decode_forward_response(encode_forward(response)) == response


@given(st.integers(0, 2**64 - 1), st.binary(max_size=40))
def test_no_flipped_bit_passes_for_another_message(step_id: int, data: bytes) -> None:
    """Any bit of messages both ways is refused; in the tag of the check it changes nothing."""
    request = worker_pb2.ForwardRequest(sync=worker_pb2.SyncFrame(step_id=step_id, data=data))
    result = worker_pb2.StepResult(step_id=step_id, logits=data, candidate_ids=data)
    response = worker_pb2.ForwardResponse(result=result)
    for message, decode in ((request, decode_forward), (response, decode_forward_response)):
        raw = encode_forward(message)
        assert type(message).FromString(raw).check  # protobuf reads it too
        assert decode(raw) == decode(raw[:-9]) == message
        for bit in range(8 * len(raw)):
            flipped = bytearray(raw)
            flipped[bit // 8] ^= 1 << bit % 8
            if bit // 8 == len(raw) - 9:
                assert decode(bytes(flipped)) == message
            else:
                with pytest.raises(ChangedError):
                    decode(bytes(flipped))


def test_bytes_like_a_check_at_the_end_of_another_field_are_not_one() -> None:
    sync = worker_pb2.SyncFrame(data=b"\x79" + bytes(8))
    request = worker_pb2.ForwardRequest(sync=sync)
    assert decode_forward(request.SerializeToString()) == request


@given(st.binary(max_size=60))
def test_small_forward_messages_are_read_as_protobuf_does(raw: bytes) -> None:
    try:
        expected = worker_pb2.ForwardRequest.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            decode_forward(raw)
    else:
        if expected.check:
            with pytest.raises(ChangedError):
                decode_forward(raw)
        else:
            assert decode_forward(raw) == expected
