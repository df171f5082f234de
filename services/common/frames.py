"""Wire format of the worker's large messages: the same bytes as protobuf's.

WeightChunk is encoded with one copy of its payload and decoded with none. Protobuf's Python code
copies a chunk of 1 MiB five times to encode it and twice to decode it: that costs more than sending
it. Tests compare both ways with protobuf.

Sizes are checked before protobuf parses a message, because many small fields become twenty to forty
times as large in memory. Everything except the payload is limited separately.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError
from xxhash import xxh3_64_intdigest

from hearth.v1 import worker_pb2

_Message = TypeVar("_Message", worker_pb2.ForwardRequest, worker_pb2.ForwardResponse)

# Messages of weight loading other than chunks. The manifest of a model of a thousand layers has
# under 1 MiB; parsed, 2 MiB become at most 80 MiB.
MAX_BEGIN_BYTES = 2 << 20
# A step's page tables: 2 MiB are 128 sequences of 100,000 tokens; parsed, at most 40 MiB.
MAX_STRUCTURE_BYTES = 2 << 20

# Tags of LoadWeightsRequest.chunk and of WeightChunk's fields (field number << 3 | wire type).
_CHUNK = 2 << 3 | 2
_SLICE = 1 << 3 | 0
_OFFSET = 2 << 3 | 0
_DATA = 3 << 3 | 2
_CHECKSUM = 4 << 3 | 1
_DIGEST = 5 << 3 | 2


@dataclass(frozen=True, slots=True)
class ChunkFrame:
    """A WeightChunk whose `data` is a view of bytes held elsewhere."""

    slice: int
    offset: int
    data: memoryview
    checksum: int
    digest: bytes = b""


def encode_request(request: worker_pb2.LoadWeightsRequest | ChunkFrame) -> bytes:
    """The message as bytes on the wire."""
    if not isinstance(request, ChunkFrame):
        return request.SerializeToString()
    head = b"".join(
        (
            _number(_SLICE, request.slice),
            _number(_OFFSET, request.offset),
            bytes((_DATA,)),
            _varint(request.data.nbytes),
        )
    )
    tail = bytes((_CHECKSUM,)) + request.checksum.to_bytes(8, "little")
    if request.digest:
        tail += bytes((_DIGEST,)) + _varint(len(request.digest)) + request.digest
    size = len(head) + request.data.nbytes + len(tail)
    return b"".join((bytes((_CHUNK,)), _varint(size), head, request.data, tail))


def decode_request(raw: bytes) -> worker_pb2.LoadWeightsRequest | ChunkFrame:
    """Decodes a message: a chunk as a ChunkFrame (a view of `raw`), others with protobuf.

    Raises protobuf's DecodeError for malformed bytes.
    """
    frame = _decode_chunk(raw)
    if frame is not None:
        return frame
    if len(raw) > MAX_BEGIN_BYTES:
        raise DecodeError(f"{len(raw)} bytes of weight loading, the limit is {MAX_BEGIN_BYTES}")
    request = worker_pb2.LoadWeightsRequest.FromString(raw)
    if not request.HasField("chunk"):
        return request
    chunk = request.chunk  # a chunk whose fields are in an order that protobuf does not write
    return ChunkFrame(
        chunk.slice, chunk.offset, memoryview(chunk.data), chunk.checksum, chunk.digest
    )


# Tags of ForwardRequest.step and .sync, and of the payload in each: activations, data.
_STEP = 2 << 3 | 2
_SYNC = 3 << 3 | 2
_PAYLOAD = 3 << 3 | 2


# ForwardRequest.check and ForwardResponse.check, the last field: a tag and eight bytes.
_CHECK = bytes((15 << 3 | 1,))
_CHECK_BYTES = 9


class ChangedError(DecodeError):
    """A message is not the one that was sent: the network or a machine damages data."""


def encode_forward(message: worker_pb2.ForwardRequest | worker_pb2.ForwardResponse) -> bytes:
    """A message of a Forward stream, with its check behind."""
    raw = message.SerializeToString()
    return b"".join((raw, _CHECK, xxh3_64_intdigest(raw).to_bytes(8, "little")))


def decode_forward(raw: bytes) -> worker_pb2.ForwardRequest:
    """Decodes a message of a Forward stream to a worker.

    Raises protobuf's DecodeError for malformed bytes, or for too many bytes besides the payload;
    ChangedError for a message that its check does not fit. One without a check is read.
    """
    return _checked(raw, _forward_request)


def decode_forward_response(raw: bytes) -> worker_pb2.ForwardResponse:
    """Decodes a message of a Forward stream from a worker. Raises as `decode_forward` does."""
    return _checked(raw, worker_pb2.ForwardResponse.FromString)


def _checked(raw: bytes, parse: Callable[[bytes], _Message]) -> _Message:
    stored = int.from_bytes(raw[1 - _CHECK_BYTES :], "little")
    # (Whatever the tag: a bit may have flipped there.)
    if xxh3_64_intdigest(memoryview(raw)[:-_CHECK_BYTES]) == stored:
        return parse(raw[:-_CHECK_BYTES])
    changed = raw[-_CHECK_BYTES : 1 - _CHECK_BYTES] == _CHECK
    try:
        message = parse(raw)
        # These bytes may also be the end of another field, in a message without a check.
        empty = message.WhichOneof("message") is None
        changed = message.check != 0 or (changed and empty)
    except DecodeError:
        if not changed:
            raise
    if changed:
        problem = f"a message of {len(raw)} bytes arrived changed: the network damages data"
        raise ChangedError(problem)
    return message


def _forward_request(raw: bytes) -> worker_pb2.ForwardRequest:
    if len(raw) > MAX_STRUCTURE_BYTES:
        structure = len(raw) - _payload_bytes(raw)
        if structure > MAX_STRUCTURE_BYTES:
            raise DecodeError(
                f"{structure} bytes besides the payload, the limit is {MAX_STRUCTURE_BYTES}"
            )
    return worker_pb2.ForwardRequest.FromString(raw)


def _payload_bytes(raw: bytes) -> int:
    """Size of the payload if `raw` is exactly one step or sync; 0 for anything else."""
    if raw[0] not in (_STEP, _SYNC):
        return 0
    try:
        size, place = _read_varint(raw, 1)
        if place + size != len(raw):
            return 0
        begin = place
        while place < len(raw) and place - begin <= MAX_STRUCTURE_BYTES:
            tag = raw[place]
            if tag & 7 == 2:
                size, start = _read_varint(raw, place + 1)
                if tag == _PAYLOAD:
                    return size if start + size <= len(raw) else 0
                place = start + size
            elif tag & 7 == 0:
                _, place = _read_varint(raw, place + 1)
            else:
                return 0
    except (IndexError, ValueError):
        return 0
    return 0


def _decode_chunk(raw: bytes) -> ChunkFrame | None:
    """A chunk whose fields are in order, at most once each, and fill `raw`; else None."""
    if not raw or raw[0] != _CHUNK:
        return None
    try:
        size, place = _read_varint(raw, 1)
        if place + size != len(raw):
            return None
        index, place = _read_number(raw, place, _SLICE)
        offset, place = _read_number(raw, place, _OFFSET)
        data, place = _read_bytes(raw, place, _DATA)
        checksum = 0
        if place < len(raw) and raw[place] == _CHECKSUM:
            if place + 9 > len(raw):
                return None
            checksum = int.from_bytes(raw[place + 1 : place + 9], "little")
            place += 9
        digest, place = _read_bytes(raw, place, _DIGEST)
    except (IndexError, ValueError):
        return None
    if place != len(raw) or index >> 32 or offset >> 64:
        return None
    return ChunkFrame(index, offset, data, checksum, bytes(digest))


def _number(tag: int, value: int) -> bytes:
    return bytes((tag,)) + _varint(value) if value else b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(raw: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a varint of more than ten bytes")


def _read_number(raw: bytes, place: int, tag: int) -> tuple[int, int]:
    if place < len(raw) and raw[place] == tag:
        return _read_varint(raw, place + 1)
    return 0, place


def _read_bytes(raw: bytes, place: int, tag: int) -> tuple[memoryview, int]:
    if place >= len(raw) or raw[place] != tag:
        return memoryview(b""), place
    size, place = _read_varint(raw, place + 1)
    if place + size > len(raw):
        raise ValueError("a field longer than its message")
    return memoryview(raw)[place : place + size], place + size
