"""The GGUF container, versions 2 and 3: a bounds-checked parser of its metadata and tensor list.

Follows the specification (ggml, docs/gguf.md); independent of models. Every length is compared with
the remaining bytes before it is used, so no unchecked size is ever allocated.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.rare_types import UNPACKED
from hearth.converter.shown import shown
from hearth.converter.weights import FORMATS

MAGIC = b"GGUF"
_MAX_KEY = 65535
_MAX_NAME = 255
_MAX_STRING = 64 << 20
_MAX_TENSORS = 1 << 20
_MAX_DIMENSIONS = 4
# Metadata becomes Python objects, several times as large as its bytes. Files have a few dozen
# entries, of which the largest are a vocabulary of up to some 300,000 tokens and its merges.
_MAX_PAIRS = 1 << 16
_MAX_ITEMS = 1 << 23
_MAX_HEADER = 256 << 20

# Value types of metadata (gguf_metadata_value_type).
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_I32, _F32, _BOOL, STRING, ARRAY = 5, 6, 7, 8, 9

# ggml_type: name. READABLE: names of those that the core reads, in converter/weights.py.
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
READABLE = {kind.upper(): kind for kind in FORMATS if kind not in UNPACKED}


@dataclass(frozen=True)
class GgufTensor:
    """shape: as numpy would say it, rows first (GGUF lists the columns first). offset: absolute."""

    kind: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """The part of a file before the tensors' bytes.

    values: metadata; arrays are lists. pairs: the bytes of each key and its value in the file, so
    that they can be copied to another. header_size: bytes before the tensors.
    """

    path: Path
    values: dict[str, Any]
    pairs: dict[str, bytes]
    tensors: dict[str, GgufTensor]
    header_size: int


class _Reader:
    """A cursor in a buffer that cannot pass its end."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.position = path, data, 0
        self.items = 0  # of all arrays

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: {what}")

    def left(self) -> int:
        return len(self.data) - self.position

    def need(self, size: int, what: str) -> None:
        if size > self.left():
            raise self.fail(
                f"{what} needs {size} bytes at byte {self.position}, but {self.left()} are left; "
                "the file is truncated or damaged"
            )

    def scalar(self, form: str, what: str) -> Any:
        size = struct.calcsize(form)
        self.need(size, what)
        (value,) = struct.unpack_from(form, self.data, self.position)
        self.position += size
        return value

    def string(self, limit: int, what: str) -> str:
        length = self.scalar("<Q", what)
        if length > limit:
            raise self.fail(f"{what} claims {length} bytes; the limit is {limit}")
        self.need(length, what)
        raw = bytes(self.data[self.position : self.position + length])
        self.position += length
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not valid UTF-8 ({error})") from error

    def strings(self, count: int, what: str) -> list[str]:
        """Like string(), but fast: vocabularies have hundreds of thousands."""
        data, end, position = self.data, len(self.data), self.position
        unpack = struct.Struct("<Q").unpack_from
        result: list[str] = []
        try:
            for _ in range(count):
                (length,) = unpack(data, position)
                last = position + 8 + length
                if last > end:
                    break
                result.append(str(data[position + 8 : last], "utf-8"))
                position = last
        except (struct.error, UnicodeDecodeError):
            pass
        self.position = position
        if len(result) < count:
            self.string(_MAX_STRING, what)  # raises the error for this one
            raise self.fail(f"{what} has a damaged string")
        return result

    def value(self, key: str) -> Any:
        what = f"the value of {key}"
        kind = self.scalar("<I", what)
        if kind == STRING:
            return self.string(_MAX_STRING, what)
        if kind in _SCALARS:
            return self._one(kind, what)
        if kind != ARRAY:
            raise self.fail(f"{what} has the unknown type {kind}")
        item = self.scalar("<I", what)
        count = self.scalar("<Q", what)
        if item == STRING:
            self._check_count(count, 8, what)
            return self.strings(count, what)
        if item not in _SCALARS:
            raise self.fail(f"{what} is an array of type {item}, which Hearth cannot read")
        form = _SCALARS[item]
        size = struct.calcsize(form)
        self._check_count(count, size, what)
        start, self.position = self.position, self.position + count * size
        # Read as bytes: unpacking "?" takes any non-zero byte, as the scalar form does.
        return list(struct.unpack_from(f"<{count}{form[1]}", self.data, start))

    def _one(self, kind: int, what: str) -> Any:
        return self.scalar(_SCALARS[kind], what)

    def _check_count(self, count: int, size: int, what: str) -> None:
        if count > self.left() // size:
            raise self.fail(
                f"{what} claims {count} items, but only {self.left()} bytes are left; the file is "
                "truncated or damaged"
            )
        self.items += count
        if self.items > _MAX_ITEMS:
            raise self.fail(
                f"{what} has {count} items, and the arrays {self.items} by then; the limit is "
                f"{_MAX_ITEMS}"
            )


def parse(path: Path, data: memoryview) -> GgufFile:
    """The metadata and tensor list of a GGUF file, given all of its bytes (mapped, not read).

    Raises:
        ModelError: not GGUF, of another version, truncated, or with numbers that contradict it.
    """
    reader = _Reader(path, data)
    if bytes(data[:4]) != MAGIC:
        raise reader.fail(f"it begins with {bytes(data[:4])!r}, so it is not a GGUF file")
    reader.position = 4
    version = reader.scalar("<I", "the version")
    if version not in (2, 3):
        raise reader.fail(f"GGUF version {version} is not supported; Hearth reads 2 and 3")
    tensor_count = reader.scalar("<Q", "the number of tensors")
    pair_count = reader.scalar("<Q", "the number of metadata entries")
    if tensor_count > min(_MAX_TENSORS, reader.left() // 24) or pair_count > reader.left() // 13:
        raise reader.fail(
            f"it claims {tensor_count} tensors and {pair_count} metadata entries, but has only "
            f"{len(data)} bytes; it is truncated or damaged"
        )
    if pair_count > _MAX_PAIRS:
        raise reader.fail(f"it has {pair_count} metadata entries; the limit is {_MAX_PAIRS}")
    values: dict[str, Any] = {}
    pairs: dict[str, bytes] = {}
    for _ in range(pair_count):
        start = reader.position
        key = reader.string(_MAX_KEY, "a metadata key")
        if key in values:
            raise reader.fail(f"the metadata key {shown(key)} occurs twice")
        values[key] = reader.value(key)
        pairs[key] = bytes(data[start : reader.position])
        if reader.position > _MAX_HEADER:
            raise reader.fail(f"its metadata has more than {_MAX_HEADER} bytes")
    infos = [_tensor_info(reader) for _ in range(tensor_count)]
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment % 8:
        raise reader.fail(
            f"general.alignment is {shown(alignment)}; it must be a multiple of 8 to 1 MiB"
        )
    header_size = reader.position
    start = -(-header_size // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, kind, shape, offset in infos:
        if name in tensors:
            raise reader.fail(f"tensor {name} occurs twice")
        if offset % alignment:
            raise reader.fail(f"tensor {name} lies at {offset}, not a multiple of {alignment}")
        if start + offset > len(data):
            raise reader.fail(
                f"tensor {name} begins at byte {start + offset}, but the file has {len(data)}; it "
                "is truncated or damaged"
            )
        tensors[name] = GgufTensor(kind, shape, start + offset)
    return GgufFile(path, values, pairs, tensors, header_size)


def _tensor_info(reader: _Reader) -> tuple[str, str, tuple[int, ...], int]:
    name = reader.string(_MAX_NAME, "a tensor's name")
    dimensions = reader.scalar("<I", f"tensor {name}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise reader.fail(
            f"tensor {name} has {dimensions} dimensions; there can be 1 to {_MAX_DIMENSIONS}"
        )
    shape = tuple(reader.scalar("<Q", f"tensor {name}") for _ in range(dimensions))[::-1]
    if min(shape) < 1 or math.prod(shape) > 1 << 48:
        raise reader.fail(f"tensor {name} has the impossible shape {list(shape)}")
    number = reader.scalar("<I", f"tensor {name}")
    kind = TENSOR_TYPES.get(number, f"of the unknown type {number}")
    return name, kind, shape, reader.scalar("<Q", f"tensor {name}")


def metadata_only(pairs: dict[str, bytes], keep: Callable[[str], bool]) -> bytes:
    """A GGUF file without tensors, with the pairs whose key `keep` accepts, byte for byte."""
    kept = [raw for key, raw in pairs.items() if keep(key)]
    return MAGIC + struct.pack("<IQQ", 3, 0, len(kept)) + b"".join(kept)


def string_pair(key: str, value: str) -> bytes:
    """A pair of a key and a string, as bytes of a file."""
    name, text = key.encode(), value.encode()
    return b"".join(
        [struct.pack("<Q", len(name)), name, struct.pack("<IQ", STRING, len(text)), text]
    )


def metadata_file(values: Mapping[str, Any]) -> bytes:
    """A GGUF file without tensors. values: strings, booleans, ids, and lists of one such type."""
    pairs = {}
    for key, value in values.items():
        name = key.encode()
        pairs[key] = struct.pack("<Q", len(name)) + name + _value_bytes(value)
    return metadata_only(pairs, lambda key: True)


def _value_bytes(value: Any) -> bytes:
    kind = _kind_of(value)
    if kind == ARRAY:
        item = _kind_of(value[0]) if value else STRING
        content = b"".join(_value_bytes(each)[4:] for each in value)
        return struct.pack("<IIQ", ARRAY, item, len(value)) + content
    if kind == STRING:
        text: bytes = value.encode()
        return struct.pack("<IQ", STRING, len(text)) + text
    return struct.pack("<I", kind) + struct.pack(_SCALARS[kind], value)


def _kind_of(value: Any) -> int:
    kinds = {str: STRING, bool: _BOOL, int: _I32, float: _F32, list: ARRAY}
    return kinds[type(value)]
