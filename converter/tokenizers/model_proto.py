"""SentencePiece's model files at the level of bytes: what the library does not tell.

A file is a protobuf message, ModelProto of sentencepiece_model.proto: pieces (field 1: text 1,
score 2, kind 3), trainer (2) and normalizer (3).
"""

import struct
from collections.abc import Iterator

from hearth.converter.tokenizers.piece_kinds import CONTROL, NORMAL, UNKNOWN

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _NORMALIZER = 1, 3
_KIND = 3
_CHARSMAP = 2
_ADD_DUMMY_PREFIX = 3


def piece_kinds(model: bytes) -> list[int]:
    """The kind of each piece, in order. Raises ValueError for a damaged model."""
    return [
        _kind(model, begin, end)
        for number, _, begin, end in _fields(model, 0, len(model))
        if number == _PIECES
    ]


def character_map(model: bytes) -> bytes:
    """The normalizer's compiled map of characters; empty where there is none."""
    found = b""
    for number, _, begin, end in _fields(model, 0, len(model)):
        if number == _NORMALIZER:
            for part, _, start, after in _fields(model, begin, end):
                if part == _CHARSMAP:
                    found = model[start:after]
    return found


def one_unknown(model: bytes) -> bytes:
    """The model with its first UNKNOWN piece only, as the library requires; others are CONTROL."""
    parts: list[bytes] = []
    seen = False
    for number, start, begin, end in _fields(model, 0, len(model)):
        if number == _PIECES and _kind(model, begin, end) == UNKNOWN:
            if seen:  # the last value of a field counts
                parts.append(field(_PIECES, model[begin:end] + varint_field(_KIND, CONTROL)))
                continue
            seen = True
        parts.append(model[start:end])
    return b"".join(parts)


def without_dummy_prefix(model: bytes) -> bytes:
    """The model without the space that marks the start of a text."""
    return model + field(_NORMALIZER, varint_field(_ADD_DUMMY_PREFIX, 0))


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, a text or a message."""
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def varint_field(number: int, value: int) -> bytes:
    """A field of an integer, a boolean or an enum."""
    return _varint(number << 3 | _VARINT) + _varint(value)


def float_field(number: int, value: float) -> bytes:
    """A field of a float."""
    return _varint(number << 3 | _FIXED32) + struct.pack("<f", value)


def _kind(model: bytes, begin: int, end: int) -> int:
    kind = NORMAL
    for number, _, value, after in _fields(model, begin, end):
        if number == _KIND:
            kind, _ = _read_varint(model, value, after)
    return kind


def _fields(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, start of the field, start of its value, end) of each field of a message."""
    place = begin
    while place < end:
        start = place
        key, place = _read_varint(data, place, end)
        value = place
        match key & 7:
            case 0:
                _, place = _read_varint(data, place, end)
            case 1:
                place += 8
            case 2:
                size, value = _read_varint(data, place, end)
                place = value + size
            case 5:
                place += 4
            case kind:
                raise ValueError(f"a field of type {kind} at byte {start}")
        if place > end:
            raise ValueError(
                f"the field at byte {start} ends {place - end} bytes after its message"
            )
        yield key >> 3, start, value, place


def _read_varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    """(value, place after it)"""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"a number that does not end, at byte {place}")


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
