"""Checkpoints in the layout of torch.save (torch 2), written without torch, for tests."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

_CLASSES = {"f32": "FloatStorage", "f16": "HalfStorage", "bf16": "BFloat16Storage"}


def element_bytes(values: npt.NDArray[Any], kind: str) -> bytes:
    """The numbers of an array in a type; bf16 by cutting off the low half of each."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    if kind == "bf16":
        return (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.astype({"f32": "<f4", "f16": "<f2"}[kind]).tobytes()


def tensor_pickle(
    key: str,
    count: int,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    made: str = "FloatStorage",
) -> bytes:
    """The pickle of one tensor."""
    body = _tensor(key, count, offset, shape, strides, made)
    return b"\x80\x02" + body + b"."


def write_checkpoint(target: Path | IO[bytes], value: Any, kind: str = "f32") -> None:
    """Save a value whose arrays become tensors of a type."""
    storages: dict[str, bytes] = {}
    body = _pickled(value, kind, storages)
    write_pickle(target, b"\x80\x02" + body + b".", storages)


def write_pickle(
    target: Path | IO[bytes], data: bytes, storages: dict[str, bytes], byteorder: bytes = b"little"
) -> None:
    """An archive of a pickle and storages; data begins at multiples of 64 bytes."""
    with zipfile.ZipFile(target, "w") as archive:
        contents = {"data.pkl": data, "byteorder": byteorder}
        contents |= {f"data/{key}": content for key, content in storages.items()}
        for name, content in {**contents, "version": b"3\n"}.items():
            entry = zipfile.ZipInfo(f"archive/{name}")
            assert archive.fp is not None
            begin = archive.fp.tell() + 30 + len(entry.filename)
            entry.extra = struct.pack("<2sH", b"FB", -(begin + 4) % 64) + b"Z" * (-(begin + 4) % 64)
            archive.writestr(entry, content)


def _pickled(value: Any, kind: str, storages: dict[str, bytes]) -> bytes:
    """Opcodes that build a value, as torch's pickler writes them."""
    if isinstance(value, dict):
        items = b"".join(
            _pickled(key, kind, storages) + _pickled(item, kind, storages)
            for key, item in value.items()
        )
        if any(isinstance(item, np.ndarray) for item in value.values()):  # a state_dict
            return b"ccollections\nOrderedDict\n)R(" + items + b"u}X\x09\0\0\0_metadata}sb"
        return b"}(" + items + b"u"
    if isinstance(value, list | tuple):
        items = b"".join(_pickled(item, kind, storages) for item in value)
        return b"](" + items + b"e" if isinstance(value, list) else b"(" + items + b"t"
    if isinstance(value, np.ndarray):
        key = str(len(storages))
        storages[key] = element_bytes(value, kind)
        shape = value.shape
        strides = tuple(int(np.prod(shape[place + 1 :])) for place in range(len(shape)))
        return _tensor(key, value.size, 0, shape, strides, _CLASSES[kind])
    return _scalar(value)


def _tensor(
    key: str, count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], made: str
) -> bytes:
    id = b"(" + _scalar("storage") + f"ctorch\n{made}\n".encode() + _scalar(key)
    id += _scalar("cpu") + _scalar(count) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(_scalar, numbers)) + b"t" for numbers in (shape, strides))
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + id + _scalar(offset) + sizes + hooks + b"tR"


def _scalar(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        if -(1 << 31) <= value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        return b"\x8a\x08" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    text = str(value).encode()
    return b"X" + struct.pack("<I", len(text)) + text
