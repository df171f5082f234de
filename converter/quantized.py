"""Quantized checkpoints of Hugging Face: FP8, GPTQ, AWQ and compressed-tensors.

Each stores a matrix as several tensors: codes, scales, perhaps zero points. Here they become one
matrix again. Integers of 4 bits with a scale and a zero point for every 32 columns or more are
q4_1, number for number. All others are unpacked to f32 and become q8_0 when they are loaded.

Formats: AutoGPTQ and AutoAWQ by their packing of int32; FP8 as DeepSeek-V3's checkpoints have it
(`weight_scale_inv` in blocks) and as vLLM's; compressed-tensors' pack-quantized, int-quantized and
float-quantized.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.fingerprint import fingerprint
from hearth.converter.rare_types import unpack
from hearth.converter.shown import shown
from hearth.converter.stored import Indices, Place, Stored
from hearth.converter.weights import Bytes

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]

_Q4_1_BLOCK = 32

Config = Mapping[str, Any]
# Keys of config.json for the settings of a method.
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
# Methods of quantization_config that are read. Families read mxfp4 by themselves.
METHODS = ("fp8", "gptq", "awq", "compressed-tensors", "mxfp4")


def quantization(config: Config) -> Config | None:
    """quantization_config of a config.json; None where there is none.

    Raises ModelError for a method that Hearth can't read.
    """
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        for key in QUANTIZATION_KEYS:
            found = place.get(key)
            if not found:
                continue
            if isinstance(found, dict):
                found = _by_usual_method(found)
            method = found.get("quant_method") if isinstance(found, dict) else found
            if method not in METHODS:
                raise ModelError(
                    f"{key} is of {shown(method)}{_details(found)}; Hearth reads "
                    f"{', '.join(METHODS)}. Get the model in one of these, without quantization, "
                    "or as GGUF"
                )
            if not isinstance(found, dict):
                raise ModelError(
                    f"{key} is the text {shown(method)}, without its settings; get "
                    "config.json again"
                )
            _refuse_own_widths(key, found)
            return found
    return None


# What other tools call the same; auto-round names the format that it packs in.
_ALIKE = {"fbgemm_fp8": "fp8", "modelopt": "fp8"}
_AUTO_ROUND = ("auto-round", "auto_round", "intel/auto-round")
_PACKED_AS = {"auto_gptq": "gptq", "gptq": "gptq", "auto_awq": "awq", "awq": "awq"}


def _by_usual_method(found: Config) -> Config:
    """The same settings by the name of the method that stores tensors in the same way."""
    method = found.get("quant_method")
    if method == "modelopt" and found.get("quant_algo") != "FP8":
        return found
    if isinstance(method, str) and method in _ALIKE:
        return {**found, "quant_method": _ALIKE[method]}
    if method in _AUTO_ROUND:
        packing = str(found.get("packing_format", "")).rpartition(":")[2]
        if packing in _PACKED_AS:
            return {**found, "quant_method": _PACKED_AS[packing]}
    return found


def _refuse_own_widths(key: str, found: Config) -> None:
    """Raise ModelError where some layers have other widths than the rest.

    auto-round lists them in extra_config, GPTQModel in dynamic. Those of 16 bits are not quantized.
    """
    for section in ("extra_config", "dynamic"):
        layers = found.get(section)
        if not isinstance(layers, dict):
            continue
        for layer, own in layers.items():
            settings = own if isinstance(own, dict) else {}
            bits = settings.get("bits")
            if isinstance(bits, int) and bits >= 16:
                continue
            for setting in ("bits", "group_size"):
                value, usual = settings.get(setting), found.get(setting)
                if value is not None and value != usual:
                    raise ModelError(
                        f"{key}.{section}: {setting} of {shown(layer)} is {shown(value)}, of the "
                        f"other layers {shown(usual)}; Hearth reads models where they are equal. "
                        "Get the model with one width, without quantization, or as GGUF"
                    )


def _details(found: object) -> str:
    """The form that a method was refused for, where it has several."""
    given = found if isinstance(found, dict) else {}
    keys = [key for key in ("quant_algo", "packing_format") if key in given]
    return f" ({keys[0]} {shown(given[keys[0]])})" if keys else ""


def quantization_beside(read: Callable[[str], Config | None]) -> Config | None:
    """The quantization_config of a checkpoint that has it in a file of its own.

    read: the JSON of a file beside config.json, None where it is absent.
    """
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        found = read(name)
        if found is not None:
            spelled = {"bits": found["w_bit"]} if "w_bit" in found else {}
            return {"quant_method": method, **spelled, **found}
    whole = read("hf_quant_config.json")
    found = whole.get("quantization") if whole is not None else None
    return {"quant_method": "modelopt", **found} if isinstance(found, dict) else None


def fp8_values() -> F32:
    """The 256 values of E4M3 (OCP 8-bit Floating Point, 2023): no infinities, one NaN."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    sizes = np.where(
        exponent == 0, mantissa / 512, (1 + mantissa / 8) * np.exp2(exponent.astype(float) - 7)
    )
    sizes[codes & 127 == 127] = np.nan
    return np.where(codes < 128, sizes, -sizes).astype(np.float32)


_FP8 = fp8_values()


@dataclass(frozen=True)
class Raw:
    """A tensor of a file, [rows, columns] elements of `dtype` (safetensors' names)."""

    file: OpenFile
    offset: int
    dtype: str
    rows: int
    columns: int

    @property
    def place(self) -> Place:
        return self.file, self.offset, self.rows * self.columns * _SIZES[self.dtype]

    def read(self, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> U8:
        """A cut, uint8 [rows, bytes of the columns]. Reads no more than it returns."""
        size = _SIZES[self.dtype]
        begin, end = columns or (0, self.columns)
        width, first = (end - begin) * size, self.offset + begin * size
        stride = self.columns * size
        count = rows[1] - rows[0]
        if width == stride:
            return self.file.read(first + rows[0] * stride, count * stride).reshape(count, stride)
        cut = np.empty((count, width), dtype=np.uint8)
        for i in range(count):
            cut[i] = self.file.read(first + (rows[0] + i) * stride, width)
        return cut

    def floats(self, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> F32:
        """A cut of a tensor in f32, f16 or bf16, as f32."""
        data = self.read(rows, columns)
        if self.dtype == "BF16":
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return data.view({"F32": "<f4", "F16": "<f2"}[self.dtype]).astype(np.float32)


_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "I8": 1, "U8": 1, "F8_E4M3": 1}


class Scaled(Stored):
    """FP8 or int8 codes, less zero points, times scales; unpacked to f32.

    A scale belongs to a block of `height` rows and `width` columns of the codes.
    """

    def __init__(
        self, codes: Raw, scales: Raw, height: int, width: int, zeros: Raw | None = None
    ) -> None:
        """zeros: int8, as many as scales; None: all are 0."""
        self.kind = "fp8" if codes.dtype == "F8_E4M3" else "int8"
        self.rows, self.columns = codes.rows, codes.columns
        self._codes, self._scales, self._zeros = codes, scales, zeros
        self._height, self._width = height, width

    def places(self) -> list[Place]:
        zeros = [self._zeros.place] if self._zeros is not None else []
        return [self._codes.place, self._scales.place, *zeros]

    def form(self) -> list[str | int]:
        zeros = ["zeros"] if self._zeros is not None else []
        return [self.kind, self.rows, self.columns, self._height, self._width, *zeros]

    def read_rows(self, begin: int, end: int) -> Bytes:
        codes = self._codes.read((begin, end))
        values = _FP8[codes] if self.kind == "fp8" else codes.view(np.int8).astype(np.float32)
        first, last = begin // self._height, -(-end // self._height)
        scales = self._scales.floats((first, last))
        down = np.arange(begin, end) // self._height - first
        across = np.arange(self.columns) // self._width
        if self._zeros is not None:
            zeros = self._zeros.read((first, last)).view(np.int8)
            values -= zeros[down[:, None], across]
        with np.errstate(all="ignore"):  # looked for in the result
            return _f32_bytes(values * scales[down[:, None], across])


class Multiplied(Stored):
    """Rows of another in GGUF's NVFP4, times a scale for all of them or for each expert's."""

    kind = "fp4"

    def __init__(self, inner: Stored, scales: Raw) -> None:
        """scales: one row."""
        self.rows, self.columns = inner.rows, inner.columns
        self._inner, self._scales = inner, scales

    def places(self) -> list[Place]:
        return [*self._inner.places(), self._scales.place]

    def form(self) -> list[str | int]:
        return ["multiplied", *self._inner.form()]

    def read_rows(self, begin: int, end: int) -> Bytes:
        values = unpack(self._inner.read_rows(begin, end), self._inner.kind).view("<f4")
        each = self.rows // self._scales.columns
        scales = self._scales.floats((0, 1))[0, np.arange(begin, end) // each]
        with np.errstate(all="ignore"):
            return _f32_bytes(values * scales[:, None])


@dataclass(frozen=True)
class Groups:
    """The groups of columns that share a scale.

    width: columns of each, neighbours. listed: the group of each column, i32 [columns], where they
    are not neighbours.
    """

    columns: int
    width: int
    listed: npt.NDArray[np.int32] | None = None

    def of_columns(self, step: int = 1) -> Indices:
        """The group of every `step`-th column, i64."""
        if self.listed is not None:
            return self.listed[::step].astype(np.int64)
        return np.arange(0, self.columns, step) // self.width

    def in_blocks(self, size: int) -> bool:
        """True if columns divide into blocks of `size` of one group each."""
        if self.listed is None or self.columns % size:
            return self.width % size == 0 and self.columns % size == 0
        return not np.ptp(self.listed.reshape(-1, size), axis=1).any()


class Layout(ABC):
    """Codes, scales and zero points of a matrix of small integers: scale * (code - zero).

    Rows are the matrix's. bits: of a code. groups: of its columns.
    """

    bits: int
    rows: int
    columns: int
    groups: Groups
    pieces: Sequence[Raw]

    @abstractmethod
    def codes(self, begin: int, end: int) -> U8:
        """[rows, columns] of rows [begin, end)."""

    @abstractmethod
    def scales(self, begin: int, end: int) -> F32:
        """[rows, groups]."""

    @abstractmethod
    def zeros(self, begin: int, end: int) -> F32:
        """[rows, groups]."""


class Integers(Stored):
    """A matrix of small integers.

    Read as q4_1, without loss, where codes have 4 bits or fewer and neighbouring columns share a
    scale. Else unpacked to f32.
    """

    def __init__(self, layout: Layout, method: str) -> None:
        self.rows, self.columns = layout.rows, layout.columns
        self._layout, self._method = layout, method
        in_blocks = layout.bits <= 4 and layout.groups.in_blocks(_Q4_1_BLOCK)
        self.kind = "q4_1" if in_blocks else f"int{layout.bits}"

    def places(self) -> list[Place]:
        return [piece.place for piece in self._layout.pieces]

    def form(self) -> list[str | int]:
        listed = self._layout.groups.listed
        order = [] if listed is None else [fingerprint([listed.astype("<i4").tobytes()]).hex()]
        return [self._method, self._layout.bits, self.kind, self.rows, self.columns, *order]

    def read_rows(self, begin: int, end: int) -> Bytes:
        layout = self._layout
        codes = layout.codes(begin, end)
        scales, zeros = layout.scales(begin, end), layout.zeros(begin, end)
        if self.kind != "q4_1":
            across = layout.groups.of_columns()
            with np.errstate(all="ignore"):
                return _f32_bytes(scales[:, across] * (codes - zeros[:, across]))
        blocks = layout.groups.of_columns(_Q4_1_BLOCK)
        count = end - begin
        packed = np.empty((count, len(blocks), 20), dtype=np.uint8)
        with np.errstate(all="ignore"):
            scale = scales[:, blocks].astype("<f2")
            least = (-scale.astype(np.float32) * zeros[:, blocks]).astype("<f2")
        packed[:, :, 0:2] = scale[..., None].view(np.uint8)
        packed[:, :, 2:4] = least[..., None].view(np.uint8)
        halves = codes.reshape(count, len(blocks), 2, 16)
        packed[:, :, 4:] = halves[:, :, 0] | halves[:, :, 1] << 4
        return packed.reshape(count, -1)


def _f32_bytes(values: F32) -> Bytes:
    return np.ascontiguousarray(values, dtype="<f4").view(np.uint8)


def _unpacked(words: U8, bits: int, order: Sequence[int] | None = None) -> U8:
    """Codes of int32 words along the last axis, the lowest bits first; uint8 [..., codes].

    order: the place of each code within its word.
    """
    values = words.view("<u4")
    count = 32 // bits
    shifts = np.arange(count, dtype=np.uint32) * bits
    codes = (values[..., None] >> shifts & ((1 << bits) - 1)).astype(np.uint8)
    if order is not None:
        codes = codes[..., np.argsort(order)]
    return codes.reshape(*values.shape[:-1], -1)


# Place in the matrix of the eight codes of an int32 of AutoAWQ.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Turned(Layout):
    """GPTQ and AWQ: matrices stored [columns, rows], scales [groups, rows].

    GPTQ packs codes along the columns, AWQ along the rows; both pack zero points along the rows.
    """

    def __init__(
        self, codes: Raw, zeros: Raw, scales: Raw, bits: int, groups: Groups,
        awq: bool, more: int,
    ) -> None:  # fmt: skip
        """more: what is added to a stored zero point."""
        self.bits, self.groups = bits, groups
        self.rows, self.columns = scales.columns, groups.columns
        self.pieces = (codes, zeros, scales)
        self._codes, self._zeros, self._scales = codes, zeros, scales
        self._order = _AWQ_ORDER if awq else None
        self._awq, self._more = awq, more

    def codes(self, begin: int, end: int) -> U8:
        if self._awq:
            return np.ascontiguousarray(self._along_rows(self._codes, begin, end).T)
        words = self._codes.read((0, self._codes.rows), (begin, end))
        return _unpacked(np.ascontiguousarray(words.view("<u4").T).view(np.uint8), self.bits)

    def scales(self, begin: int, end: int) -> F32:
        return self._scales.floats((0, self._scales.rows), (begin, end)).T

    def zeros(self, begin: int, end: int) -> F32:
        found = self._along_rows(self._zeros, begin, end).T
        return found.astype(np.float32) + np.float32(self._more)

    def _along_rows(self, piece: Raw, begin: int, end: int) -> U8:
        """Codes of rows [begin, end), packed along them: [columns or groups, rows]."""
        count = 32 // self.bits
        first = begin // count
        words = piece.read((0, piece.rows), (first, -(-end // count)))
        codes = _unpacked(words, self.bits, self._order)
        return codes[:, begin - first * count : end - first * count]


class Packed(Layout):
    """compressed-tensors' pack-quantized: codes packed along a row, zero points down the rows."""

    def __init__(
        self, codes: Raw, zeros: Raw | None, scales: Raw, bits: int, groups: Groups
    ) -> None:
        self.bits, self.groups = bits, groups
        self.rows, self.columns = codes.rows, groups.columns
        self.pieces = tuple(piece for piece in (codes, zeros, scales) if piece is not None)
        self._codes, self._zeros, self._scales = codes, zeros, scales

    def codes(self, begin: int, end: int) -> U8:
        return _unpacked(self._codes.read((begin, end)), self.bits)[:, : self.columns]

    def scales(self, begin: int, end: int) -> F32:
        return self._scales.floats((begin, end))

    def zeros(self, begin: int, end: int) -> F32:
        if self._zeros is None:
            middle = np.float32(1 << (self.bits - 1))
            return np.full((end - begin, self._scales.columns), middle, dtype=np.float32)
        count = 32 // self.bits
        first = begin // count
        words = self._zeros.read((first, -(-end // count)))
        turned = np.ascontiguousarray(words.view("<u4").T).view(np.uint8)
        codes = _unpacked(turned, self.bits)[:, begin - first * count : end - first * count]
        return codes.T.astype(np.float32)
