"""The number formats of weights, and conversion of rows between them.

`TYPES` are Hearth's own (f32, f16, and GGUF's Q8_0 and Q4_0 blocks of 32 along a row). Files also
hold bf16, which is converted when read. The arithmetic is the core's; this file adds checks.
"""

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.converter.errors import ModelError

TYPES = ("f32", "f16", "q80", "q40")
BLOCK = 32

Bytes = npt.NDArray[np.uint8]

# (elements, bytes) of the smallest unit that a row consists of.
_UNITS = {"f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q80": (BLOCK, 34), "q40": (BLOCK, 18)}
_F16_LARGEST = 65504.0


def is_quantized(kind: str) -> bool:
    return kind in ("q80", "q40")


def check_type(kind: str) -> str:
    """Return `kind`. Raises ModelError unless it is one of TYPES."""
    if kind not in TYPES:
        raise ModelError(f"weight type {kind!r} is unknown; choose one of {', '.join(TYPES)}")
    return kind


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of `columns` elements. Raises ModelError where blocks do not fit the row."""
    numbers, size = _UNITS[kind]
    if columns % numbers:
        raise ModelError(
            f"a row of {columns} columns does not divide into {kind} blocks of {numbers}"
        )
    return columns // numbers * size


def effective_type(kind: str, columns: int) -> str:
    """`kind`, or f16 for rows that a quantized type's blocks of 32 do not fit."""
    return "f16" if is_quantized(kind) and columns % BLOCK else kind


def cut_columns(data: Bytes, kind: str, columns: tuple[int, int]) -> Bytes:
    """A view of columns [begin, end) of rows of `kind`; both on a multiple of 32 for q types."""
    numbers, size = _UNITS[kind]
    begin, end = columns
    if begin % numbers or end % numbers:
        raise ModelError(
            f"columns {begin} to {end} do not fall on {kind} blocks of {numbers}; "
            f"cut at multiples of {numbers}"
        )
    return data[:, begin // numbers * size : end // numbers * size]


def to_f32(data: Bytes, kind: str, columns: int) -> npt.NDArray[np.float32]:
    """Rows of `kind`, uint8 [rows, row_bytes], as f32 [rows, columns]."""
    data = np.ascontiguousarray(data)
    if kind == "bf16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if kind == "f32":
        return data.view("<f4").astype(np.float32, copy=False)
    return _native.dequantize(data, kind, columns)


def convert_rows(data: Bytes, source: str, target: str, columns: int, name: str) -> Bytes:
    """Rows of `source` as rows of `target`, uint8 [rows, row_bytes(target, columns)].

    Raises:
        ModelError: a value is not finite, or does not fit in f16 (`name` names the tensor).
    """
    if source == target:
        return np.ascontiguousarray(data)
    numbers = to_f32(data, source, columns)
    largest = float(np.max(np.abs(numbers))) if numbers.size else 0.0
    if not np.isfinite(largest):
        raise ModelError(
            f"tensor {name} holds numbers that are infinite or not numbers; the file is "
            "damaged, or the model was saved from a run that diverged"
        )
    if target == "f16" and largest > _F16_LARGEST:
        raise ModelError(
            f"tensor {name} holds {largest:g}, above f16's largest of {_F16_LARGEST:g}; "
            "use --weights f32 or q80"
        )
    if target == "f32":
        return np.ascontiguousarray(numbers, dtype="<f4").view(np.uint8)
    return _native.quantize(numbers, target)
