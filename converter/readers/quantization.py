"""Quantized checkpoints of Hugging Face: which tensors of the files belong together.

config.json's `quantization_config` names the method. Every matrix that is stored in pieces becomes
one entry under the name that it has in models that are not quantized.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hearth.converter.errors import ModelError
from hearth.converter.families.base import FileTensor
from hearth.converter.quantized import (
    Config,
    Groups,
    Integers,
    Packed,
    Raw,
    Scaled,
    Turned,
    quantization,
)
from hearth.converter.shown import shown
from hearth.converter.stored import Stored

Entries = dict[str, FileTensor]

_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_FLOATS = ("F32", "F16", "BF16")
_WORDS = ("I32",)
_FP8 = "F8_E4M3"
_MOST_COLUMNS = 1 << 20
# Scales of activations, which stay in f32 here, and of a KV cache in FP8.
_UNUSED = (
    ".input_scale", ".input_scale_ub", ".activation_scale", ".input_zero_point",
    ".input_global_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale", ".kv_scale",
)  # fmt: skip


def merge(source: str, config: Config, entries: Entries) -> Entries:
    """The entries of a checkpoint, with one for each matrix. source: its name, for errors.

    Raises ModelError: pieces that are missing or do not fit each other.
    """
    found = quantization(config)
    if found is None or found["quant_method"] == "mxfp4":  # which families read themselves
        return entries
    method = found["quant_method"]
    makers: dict[str, Callable[[_Pieces, Config], Stored | None]] = {
        "gptq": _gptq,
        "awq": _awq,
        "fp8": _fp8,
        "compressed-tensors": _compressed,
    }
    make = makers[method]
    merged = {name: entry for name, entry in entries.items() if not name.endswith(_UNUSED)}
    stems = [name.rpartition(".")[0] for name in merged if name.endswith(_CODES)]
    for stem in stems:
        pieces = _Pieces(source, stem, merged)
        made = make(pieces, found)
        if made is None:
            continue
        last = pieces.last
        for name in pieces.used:
            del merged[name]
        merged[f"{stem}.weight"] = replace(
            last, kind=made.kind, shape=(made.rows, made.columns), made=made
        )
    return merged


# Ends of the names of tensors of codes.
_CODES = (".qweight", ".weight_packed", ".weight")


class _Pieces:
    """The tensors under one name: X.qweight, X.scales ..."""

    def __init__(self, source: str, stem: str, entries: Entries) -> None:
        self._source, self._stem, self._entries = source, stem, entries
        self.used: list[str] = []

    @property
    def last(self) -> FileTensor:
        """The entry of the codes."""
        return self._entries[self.used[0]]

    def __contains__(self, part: str) -> bool:
        return f"{self._stem}.{part}" in self._entries

    def dtype(self, part: str) -> str:
        """The type of a piece; "" where there is none."""
        entry = self._entries.get(f"{self._stem}.{part}")
        return "" if entry is None else _DTYPES.get(entry.kind, entry.kind)

    def take(self, part: str, dtypes: tuple[str, ...]) -> Raw:
        """A piece of one of these types; vectors are one row. Raises ModelError."""
        name = f"{self._stem}.{part}"
        entry = self._entries.get(name)
        self.need(part)
        assert entry is not None
        dtype = self.dtype(part)
        if dtype not in dtypes or len(entry.shape) > 2:
            raise self.wrong(
                f"tensor {name} is {dtype} {list(entry.shape)}; it must be a matrix of "
                f"{' or '.join(dtypes)}"
            )
        self.used.append(name)
        rows, columns = (1, 1, *entry.shape)[-2:]
        return Raw(entry.file, entry.offset, dtype, rows, columns)

    def need(self, part: str) -> None:
        """Raise ModelError where a piece is missing."""
        if part not in self:
            raise self.wrong(f"tensor {self._stem}.{part} is missing")

    def drop(self, part: str) -> None:
        """Leave a piece out that is not needed."""
        if part in self:
            self.used.append(f"{self._stem}.{part}")

    def groups(self, part: str, columns: int, groups: int) -> Groups:
        """Equal groups of neighbouring columns, or as a piece lists them ("": none does).

        Raises ModelError: they do not divide, or the piece does not fit.
        """
        if not 1 <= columns <= _MOST_COLUMNS or groups < 1 or columns % groups:
            raise self.wrong(f"{columns} columns do not divide into {groups} groups of scales")
        neighbours = Groups(columns, columns // groups)
        if not part or part not in self:
            return neighbours
        piece = self.take(part, _WORDS)
        if piece.rows * piece.columns != columns:
            raise self.shapes(part, f"{columns} columns")
        found = piece.read((0, piece.rows)).view("<i4").reshape(-1).astype(np.int32)
        if found.min() < 0 or found.max() >= groups:
            raise self.wrong(f"{self._stem}.{part} names group {found.max()} of {groups}")
        if np.array_equal(found, neighbours.of_columns()):
            return neighbours
        return Groups(columns, neighbours.width, found)

    def shapes(self, part: str, wanted: str) -> ModelError:
        """The error for a piece that does not fit the others."""
        shape = list(self._entries[f"{self._stem}.{part}"].shape)
        return self.wrong(
            f"tensor {self._stem}.{part} has shape {shape}, which does not fit {wanted}"
        )

    def wrong(self, problem: str) -> ModelError:
        """An error that names the files."""
        return ModelError(f"{self._source}: {problem}")


def _number(pieces: _Pieces, config: Config, key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise pieces.wrong(f"quantization_config's {key} is {shown(value)}, not a whole number")
    return value


def _bits(pieces: _Pieces, config: Config, allowed: tuple[int, ...], key: str = "bits") -> int:
    bits = _number(pieces, config, key, 4)
    if bits not in allowed:
        known = " or ".join(map(str, allowed))
        raise pieces.wrong(f"quantization_config's {key} is {bits}; Hearth reads {known}")
    return bits


def _gptq(pieces: _Pieces, config: Config) -> Stored | None:
    if "qweight" not in pieces:
        return None
    bits = _bits(pieces, config, (2, 4, 8))
    count = 32 // bits
    codes = pieces.take("qweight", _WORDS)
    scales = pieces.take("scales", _FLOATS)
    zeros = pieces.take("qzeros", _WORDS)
    columns, rows = codes.rows * count, scales.columns
    if codes.columns != rows:
        raise pieces.shapes("scales", f"{codes.columns} rows")
    if zeros.rows != scales.rows or zeros.columns * count != rows:
        raise pieces.shapes("qzeros", f"{scales.rows} groups of {rows} rows in words of {count}")
    groups = pieces.groups("g_idx", columns, scales.rows)
    # The first version of the format stores zero points less one.
    more = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
    return Integers(Turned(codes, zeros, scales, bits, groups, False, more), "gptq")


def _awq(pieces: _Pieces, config: Config) -> Stored | None:
    if "qweight" not in pieces:
        return None
    bits = _bits(pieces, config, (4,))
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise pieces.wrong(f"quantization_config's version is {shown(version)}; Hearth reads gemm")
    codes = pieces.take("qweight", _WORDS)
    scales = pieces.take("scales", _FLOATS)
    zeros = pieces.take("qzeros", _WORDS)
    if codes.columns * 8 != scales.columns:
        raise pieces.shapes("scales", f"{codes.columns * 8} rows")
    if zeros.rows != scales.rows or zeros.columns != codes.columns:
        raise pieces.shapes("qzeros", f"{scales.rows} groups of {scales.columns} rows")
    groups = pieces.groups("", codes.rows, scales.rows)
    return Integers(Turned(codes, zeros, scales, bits, groups, True, 0), "awq")


def _fp8(pieces: _Pieces, config: Config) -> Stored | None:
    if pieces.dtype("weight") != _FP8:
        return None
    block = config.get("weight_block_size")
    return _scaled(pieces, pieces.take("weight", (_FP8,)), block)


def _scaled(pieces: _Pieces, codes: Raw, block: Any) -> Stored:
    """Codes with a scale for the whole matrix, for each row, or for each block."""
    part = "weight_scale_inv" if "weight_scale_inv" in pieces else "weight_scale"
    scales = pieces.take(part, _FLOATS)
    shape = (scales.rows, scales.columns)
    zeros = None
    if codes.dtype == _FP8:  # whose zero points are 0
        pieces.drop("weight_zero_point")
    elif "weight_zero_point" in pieces:
        zeros = pieces.take("weight_zero_point", ("I8",))
        allowed = {shape, shape[::-1]} if 1 in shape else {shape}
        if (zeros.rows, zeros.columns) not in allowed:
            raise pieces.shapes("weight_zero_point", f"scales of shape {list(shape)}")
        zeros = replace(zeros, rows=shape[0], columns=shape[1])
    if shape == (1, 1):
        return Scaled(codes, scales, max(codes.rows, 1), max(codes.columns, 1), zeros)
    if shape in ((codes.rows, 1), (1, codes.rows)):
        scales = replace(scales, rows=codes.rows, columns=1)
        if zeros is not None:
            zeros = replace(zeros, rows=codes.rows, columns=1)
        return Scaled(codes, scales, 1, max(codes.columns, 1), zeros)
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
        height, width = block
        if shape == (-(-codes.rows // height), -(-codes.columns // width)):
            return Scaled(codes, scales, height, width, zeros)
    raise pieces.shapes(part, f"[{codes.rows}, {codes.columns}] in blocks of {block}")


def _compressed(pieces: _Pieces, config: Config) -> Stored | None:
    dtype = pieces.dtype("weight")
    integers = dtype == "I8" or "weight_packed" in pieces
    if integers and _weights(config).get("symmetric") is False:
        pieces.need("weight_zero_point")
    if dtype in (_FP8, "I8"):
        return _scaled(
            pieces, pieces.take("weight", (_FP8, "I8")), _weights(config).get("block_structure")
        )
    if "weight_packed" not in pieces:
        return None
    settings = _weights(config)
    if settings.get("type", "int") != "int":
        raise pieces.wrong(
            f"weights are packed {shown(settings.get('type'))} of {settings.get('num_bits')} "
            "bits; Hearth reads packed integers of 4 or 8 bits, and FP8"
        )
    bits = _bits(pieces, settings, (4, 8), "num_bits")
    count = 32 // bits
    codes = pieces.take("weight_packed", _WORDS)
    scales = pieces.take("weight_scale", _FLOATS)
    shape = pieces.take("weight_shape", ("I64", "I32"))
    if shape.rows * shape.columns != 2:
        raise pieces.shapes("weight_shape", "the two sizes of a matrix")
    sizes = shape.read((0, shape.rows)).view("<i8" if shape.dtype == "I64" else "<i4").reshape(-1)
    rows, columns = int(sizes[0]), int(sizes[1])
    if rows != codes.rows or -(-columns // count) != codes.columns or scales.rows != rows:
        raise pieces.shapes("weight_packed", f"weight_shape [{rows}, {columns}]")
    groups = pieces.groups("weight_g_idx", columns, scales.columns)
    zeros = None
    if "weight_zero_point" in pieces:
        zeros = pieces.take("weight_zero_point", _WORDS)
        if zeros.rows != -(-rows // count) or zeros.columns != scales.columns:
            raise pieces.shapes("weight_zero_point", f"{rows} rows of {scales.columns} groups")
    return Integers(Packed(codes, zeros, scales, bits, groups), "compressed-tensors")


def _weights(config: Config) -> Config:
    """The settings of weights of the first group of layers; all groups are taken to be alike."""
    groups = config.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    return weights if isinstance(weights, dict) else {}
