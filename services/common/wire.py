"""Encoding of syncs and activations on the wire: f32, f16 or q80, checked before use.

Shapes are [rows, columns], row-major, little-endian. Independent of gRPC.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common.errors import HearthError, Reason
from hearth.common.types import SYNC, name_of

F32 = npt.NDArray[np.float32]

_F16_MAX = np.float32(65504.0)


def type_name(sync_type: int) -> str:
    """ "f32", "f16" or "q80". Raises HearthError INVALID_ARGUMENT for anything else."""
    name = name_of(SYNC, sync_type)
    if name is None:
        raise HearthError(Reason.INVALID_ARGUMENT, f"unknown sync type {sync_type}")
    return name


def encoded_bytes(sync_type: int, rows: int, columns: int) -> int:
    """Bytes of `encode` for float32 [rows, columns]. Raises HearthError (q80: columns % 32)."""
    name = type_name(sync_type)
    if name == "q80":
        if columns % 32:
            problem = (
                f"sync type q80 needs a width that is a multiple of 32, not {columns}: use f16"
            )
            raise HearthError(Reason.INVALID_ARGUMENT, problem)
        return rows * columns // 32 * 34
    return rows * columns * (4 if name == "f32" else 2)


def encode(x: F32, sync_type: int) -> bytes:
    """Bytes of x, float32 [rows, columns]. f16 saturates at 65504."""
    name = type_name(sync_type)
    if name == "f32":
        return np.ascontiguousarray(x, dtype="<f4").tobytes()
    if name == "f16":
        return np.clip(x, -_F16_MAX, _F16_MAX).astype("<f2").tobytes()
    encoded_bytes(sync_type, *x.shape)
    return _native.quantize(np.ascontiguousarray(x, dtype=np.float32), "q80").tobytes()


def decode(data: bytes, sync_type: int, rows: int, columns: int) -> F32:
    """Bytes of `encode` as float32 [rows, columns], perhaps read-only. Raises BAD_STEP."""
    expected = encoded_bytes(sync_type, rows, columns)
    if len(data) != expected:
        shape = f"[{rows}, {columns}] in {type_name(sync_type)}"
        problem = f"{len(data)} bytes, expected {expected} for {shape}"
        raise HearthError(Reason.BAD_STEP, problem)
    name = type_name(sync_type)
    if name == "f32":
        return np.frombuffer(data, dtype="<f4").reshape(rows, columns)
    if name == "f16":
        return np.frombuffer(data, dtype="<f2").astype(np.float32).reshape(rows, columns)
    blocks = np.frombuffer(data, dtype=np.uint8).reshape(rows, columns // 32 * 34)
    return _native.dequantize(blocks, "q80", columns)


def decode_flat(data: bytes, sync_type: int) -> F32:
    """Bytes of `encode` whose shape is not known, as float32 [1, n]. Raises BAD_STEP."""
    name = type_name(sync_type)
    if name == "q80":
        return decode(data, sync_type, 1, len(data) // 34 * 32)
    return decode(data, sync_type, 1, len(data) // (4 if name == "f32" else 2))
