"""The safetensors container: checked reading of its header, and writing tensor by tensor.

The format is eight bytes of header length, a JSON header, then the tensors' bytes
(huggingface/safetensors, "Format"). Written by hand because rows are cut and written as streams,
which the library offers neither for bf16 nor for files larger than memory.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.shown import shown

# A hundred thousand tensors. (The reference implementation reads up to 100 MB, which can become
# gigabytes of objects.)
_MAX_HEADER = 16 << 20
_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a file: `offset` is absolute, `size` is in bytes and fits shape and dtype."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """A checked header."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(file: OpenFile) -> Header:
    """The header of an open safetensors file.

    Raises:
        ModelError: truncated, not safetensors, or tensors that overlap, leave the file, or have a
            size that does not fit their shape.
    """
    path = file.path
    if file.size < 10:
        raise ModelError(f"{path} has {file.size} bytes; that is too short for a safetensors file")
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > min(_MAX_HEADER, file.size - 8):
        raise ModelError(
            f"{path} claims a header of {length} bytes, but has {file.size} bytes; it is truncated "
            "or no safetensors file"
        )
    raw = file.read(8, length).tobytes()
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} has a damaged safetensors header: {error}") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path} has a safetensors header that is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelError(f"{path} has __metadata__ that does not map names to texts")
    start = 8 + length
    tensors = {name: _entry(path, name, entry, start, file.size) for name, entry in header.items()}
    end, last = start, ""
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if entry.offset < end:
            raise ModelError(f"{path}: tensors {last} and {name} overlap")
        end, last = entry.offset + entry.size, name
    return Header(tensors, metadata)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _sizes(value: Any) -> list[int] | None:
    """A short list of sizes, else None."""
    if not isinstance(value, list) or len(value) > 8:
        return None
    return value if all(type(item) is int and 0 <= item < 1 << 62 for item in value) else None


def _entry(path: Path, name: str, entry: Any, start: int, file_size: int) -> TensorEntry:
    if not isinstance(entry, dict):
        raise ModelError(f"{path}: the entry of tensor {shown(name)} is not a JSON object")
    dtype = entry.get("dtype")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise ModelError(
            f"{path}: tensor {shown(name)} lacks a usable dtype, shape or data_offsets"
        )
    begin, end = offsets
    if begin > end or start + end > file_size:
        raise ModelError(
            f"{path}: tensor {name} spans bytes {start + begin} to {start + end}, but the file has "
            f"{file_size}; it is truncated or damaged"
        )
    unit = _DTYPE_BYTES.get(dtype)
    if unit is not None and math.prod(shape) * unit != end - begin:
        raise ModelError(
            f"{path}: tensor {name} of shape {shape} and type {dtype} needs "
            f"{math.prod(shape) * unit} bytes, but has {end - begin}"
        )
    return TensorEntry(dtype, tuple(shape), start + begin, end - begin)


class SafetensorsWriter:
    """Writer of a safetensors file: the header, then each tensor's bytes in order.

    A context manager; leaving it without an error checks that every byte was written, and syncs the
    file to disk.
    """

    def __init__(
        self,
        path: Path,
        tensors: Iterable[tuple[str, str, tuple[int, ...]]],
        metadata: dict[str, str],
    ) -> None:
        """tensors: (name, dtype, shape) in the order of their bytes.

        size: bytes of the whole file, tensor_bytes: of its tensors."""
        header: dict[str, Any] = {"__metadata__": metadata}
        offset = 0
        for name, dtype, shape in tensors:
            size = math.prod(shape) * _DTYPE_BYTES[dtype]
            header[name] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        self._prefix = len(raw).to_bytes(8, "little") + raw
        self._path = path
        self._left = offset
        self.tensor_bytes = offset
        self.size = len(self._prefix) + offset
        self._file: BinaryIO | None = None

    def __enter__(self) -> "SafetensorsWriter":
        self._file = self._path.open("xb")
        self._file.write(self._prefix)
        return self

    def write(self, data: memoryview) -> None:
        """Write the next bytes. Raises ValueError for more bytes than the header declares."""
        if self._file is None or data.nbytes > self._left:
            raise ValueError(f"{data.nbytes} bytes to write, {self._left} expected")
        self._file.write(data)
        self._left -= data.nbytes

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:
            return
        try:
            if kind is None:
                if self._left:
                    raise ValueError(f"{self._left} bytes of tensors were not written")
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
            self._file = None
