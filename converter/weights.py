"""The number formats of weights, and conversion of rows between them.

`TYPES` are Hearth's own (f32, f16, and GGUF's Q8_0 and Q4_0 blocks of 32 along a row). Files also
hold bf16 and other formats of GGUF, which are converted when read. The arithmetic is the core's;
this file adds checks.
"""

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.converter.errors import ModelError

TYPES = ("f32", "f16", "q80", "q40")
BLOCK = 32

Bytes = npt.NDArray[np.uint8]

# (elements, bytes) of the smallest unit that a row consists of, in files; by the core's names.
_UNITS = {
    "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q80": (BLOCK, 34), "q40": (BLOCK, 18),
    "q4_1": (BLOCK, 20), "q5_0": (BLOCK, 22), "q5_1": (BLOCK, 24),
    "q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176),
    "q6_k": (256, 210), "iq4_nl": (BLOCK, 18), "iq4_xs": (256, 136), "mxfp4": (BLOCK, 17),
}  # fmt: skip
_F16_LARGEST = 65504.0
# The largest magnitude that each type holds: a block's scale is an f16.
_LARGEST = {"f16": _F16_LARGEST, "q80": 127 * _F16_LARGEST, "q40": 8 * _F16_LARGEST}


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


def loaded_type(kind: str) -> str:
    """The type that a file's format is loaded in where none is asked for."""
    if kind in TYPES:
        return kind
    return "f16" if kind == "bf16" else "q80"


def convert_rows(
    data: Bytes, source: str, target: str, columns: tuple[int, int], name: str
) -> tuple[Bytes, float]:
    """Columns [begin, end) of rows of `source` as rows of `target`, and a magnitude.

    Returns uint8 [rows, row_bytes(target, end - begin)], and the largest magnitude of numbers (of
    scales, where q80 and q40 stay as they are): infinite or NaN where one is.

    Raises:
        ModelError: a number does not fit in `target` (`name` names the tensor), or columns do not
            fall on blocks of q80 or q40.
    """
    begin, end = columns
    numbers, size = _UNITS[source]
    if source in TYPES and (begin % numbers or end % numbers):
        raise ModelError(
            f"columns {begin} to {end} do not fall on {source} blocks of {numbers}; "
            f"cut at multiples of {numbers}"
        )
    if source == target:
        cut = np.ascontiguousarray(data[:, begin // numbers * size : end // numbers * size])
        return cut, _native.largest_scale(cut, source)
    converted, largest = _native.convert(np.ascontiguousarray(data), source, target, begin, end)
    limit = _LARGEST.get(target, np.inf)
    if limit < largest < np.inf:
        others = "f32 or q80" if target == "f16" else "f32"
        raise ModelError(
            f"tensor {name} holds {largest:g}, above {target}'s largest of {limit:g}; "
            f"use --weights {others}"
        )
    return converted, largest
