"""The number formats of weights, and conversion of rows between them.

`FORMATS` is the one table of types, by GGUF's names. A row is a run of blocks. The core computes
with `PACKED` types as they are stored. Others are converted while they are read. The arithmetic is
the core's; this file adds checks.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.converter import rare_types
from hearth.converter.errors import ModelError

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Format:
    """A number format. columns, size: elements and bytes of its block, the smallest unit of a row.

    halves: offsets of a block's f16 numbers. largest: the largest magnitude, as a multiple of the
    largest f16. fallback: the type for rows that its blocks do not fit, as llama.cpp chooses it.
    """

    name: str
    columns: int
    size: int
    halves: tuple[int, ...] = ()
    largest: float = math.inf
    fallback: str = "f16"

    @property
    def quantized(self) -> bool:
        """True if elements of a block share a scale."""
        return self.columns > 1

    @property
    def bits(self) -> float:
        """Bits of an element."""
        return 8 * self.size / self.columns


# In the order of their numbers in protos/hearth/v1/common.proto, and those that only files have.
FORMATS = {
    each.name: each
    for each in (
        Format("f32", 1, 4),
        Format("f16", 1, 2, (0,), 1),
        Format("q8_0", 32, 34, (0,), 127),
        Format("q4_0", 32, 18, (0,), 8),
        Format("q4_1", 32, 20, (0, 2), 1),
        Format("q5_0", 32, 22, (0,), 16),
        Format("q5_1", 32, 24, (0, 2), 1),
        Format("q2_k", 256, 84, (80, 82), 15, "q4_0"),
        Format("q3_k", 256, 110, (108,), 4 * 31, "q4_0"),
        Format("q4_k", 256, 144, (0, 2), 63, "q5_0"),
        Format("q5_k", 256, 176, (0, 2), 63, "q5_1"),
        Format("q6_k", 256, 210, (208,), 32 * 127, "q8_0"),
        Format("iq4_nl", 32, 18, (0,), 113),
        Format("iq4_xs", 256, 136, (0,), 31 * 113, "iq4_nl"),
        Format("mxfp4", 32, 17),
        Format("bf16", 1, 2),
        *(Format(name, columns, size) for name, (columns, size) in rare_types.SIZES.items()),
    )
}


def _runs(name: str) -> bool:
    try:
        _native.row_bytes(name, FORMATS[name].columns)
    except ValueError:
        return False
    return True


# Types that the core computes with. Others are converted while loading.
PACKED = tuple(name for name in FORMATS if _runs(name))
# Former names, in options and in converted models.
ALIASES = {"q80": "q8_0", "q40": "q4_0"}

_F16_LARGEST = 65504.0


def type_name(name: str) -> str:
    """The name of a type, which may be given by its former name."""
    return ALIASES.get(name, name)


def is_quantized(kind: str) -> bool:
    """True for a type of blocks with a scale."""
    return FORMATS[kind].quantized


def is_format(kind: str) -> bool:
    """True for a format of files that can be read."""
    return kind in FORMATS


def check_type(kind: str) -> str:
    """The name of a type that weights are loaded in. Raises ModelError for any other."""
    kind = type_name(kind)
    if kind not in PACKED:
        raise ModelError(f"weight type {kind!r} is unknown; choose one of {', '.join(PACKED)}")
    return kind


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of `columns` elements. Raises ModelError where blocks do not fit the row."""
    form = FORMATS[kind]
    if columns % form.columns:
        raise ModelError(
            f"a row of {columns} columns does not divide into {kind} blocks of {form.columns}"
        )
    return columns // form.columns * form.size


def effective_type(kind: str, columns: int) -> str:
    """`kind`, or its fallback for rows that its blocks do not fit, in the end f16."""
    while columns % FORMATS[kind].columns:
        kind = FORMATS[kind].fallback
    return kind


def loaded_type(kind: str) -> str:
    """The type that a file's format is loaded in where none is asked for."""
    if kind in PACKED:
        return kind
    if kind == "bf16":
        return "f16"
    # Its blocks are of 256 columns too, so they fit.
    nearest = rare_types.NEAREST.get(kind, "q8_0")
    return nearest if nearest in PACKED else "q8_0"


def convert_rows(
    data: Bytes, source: str, target: str, columns: tuple[int, int], name: str
) -> tuple[Bytes, float]:
    """Columns [begin, end) of rows of `source` as rows of `target`, and a magnitude.

    Returns uint8 [rows, row_bytes(target, end - begin)], and the largest magnitude of numbers (of
    scales, where a quantized type stays as it is): infinite or NaN where one is.

    Raises:
        ModelError: a number does not fit in `target` (`name` names the tensor), or bytes that stay
            as they are are cut within a block.
    """
    begin, end = columns
    form = FORMATS[source]
    if source == target:
        if begin % form.columns or end % form.columns:
            raise ModelError(
                f"columns {begin} to {end} do not fall on {source} blocks of {form.columns}; "
                f"cut at multiples of {form.columns}"
            )
        first, last = (place // form.columns * form.size for place in columns)
        cut = np.ascontiguousarray(data[:, first:last])
        return cut, _native.largest_scale(cut, source)
    data = np.ascontiguousarray(data)
    if source in rare_types.SIZES:
        data, source = rare_types.unpack(data, source), "f32"
    converted, largest = _native.convert(data, source, target, begin, end)
    limit = FORMATS[target].largest * _F16_LARGEST
    if limit < largest < np.inf:
        others = "f32 or q8_0" if target == "f16" else "f32"
        raise ModelError(
            f"tensor {name} holds {largest:g}, above {target}'s largest of {limit:g}; "
            f"use --weights {others}"
        )
    return converted, largest
