"""Checkpoints as torch.save writes them, read without torch and without running their pickle.

A zip archive of stored (uncompressed) files: `data.pkl`, a pickle of dictionaries, numbers and
tensors, and for each tensor's storage a file `data/KEY` of its numbers.
"""

import math
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.readers.pickled import MAX_BYTES, Known, read_pickle
from hearth.converter.shown import shown

ZIP_MAGIC = b"PK\x03\x04"
# Of the directory of an archive, which zipfile holds whole.
_MAX_DIRECTORY = 16 << 20
_MAX_DIMENSIONS = 8
_LOCAL_HEADER = struct.Struct("<4s22xHH")
# Types of storages: (name in errors and for Hearth, bytes of an element).
_STORAGES = {
    "FloatStorage": ("f32", 4),
    "HalfStorage": ("f16", 2),
    "BFloat16Storage": ("bf16", 2),
    "DoubleStorage": ("f64", 8),
    "LongStorage": ("i64", 8),
    "IntStorage": ("i32", 4),
    "ShortStorage": ("i16", 2),
    "CharStorage": ("i8", 1),
    "ByteStorage": ("u8", 1),
    "BoolStorage": ("bool", 1),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a checkpoint: its type ("f32", "bf16" ...), shape, and first byte in the file."""

    kind: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Storage:
    kind: str
    element: int
    offset: int
    count: int


def read_checkpoint(file: OpenFile) -> Any:
    """The object that was saved: dictionaries, lists, numbers, texts, and Tensor objects.

    Raises:
        ModelError: it is damaged, or holds more than data.
    """
    path = file.path
    with os.fdopen(os.dup(file.fileno()), "rb") as stream:
        try:
            with zipfile.ZipFile(_Bounded(stream, file.size, path)) as archive:
                return _read(file, {entry.filename: entry for entry in archive.infolist()})
        except (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError) as error:
            raise ModelError(
                f"{path} is not a checkpoint of torch.save, or is truncated ({error}). Files from "
                "before torch 1.6 are of another format: save them again"
            ) from error
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            raise ModelError(f"{path} is damaged: {error}") from error


class _Bounded:
    """A file that is read in pieces of bounded size: an archive's directory may claim any."""

    def __init__(self, stream: IO[bytes], size: int, path: Path) -> None:
        self._stream, self._size, self._path = stream, size, path
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable
        self.close = stream.close

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes. Raises ModelError beyond the limit."""
        if count < 0:
            count = self._size - self._stream.tell()
        if count > _MAX_DIRECTORY:
            raise ModelError(
                f"{self._path}: the archive's directory has {count} bytes; the limit is "
                f"{_MAX_DIRECTORY}"
            )
        return self._stream.read(count)


def _read(file: OpenFile, entries: dict[str, zipfile.ZipInfo]) -> Any:
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ModelError(f"{file.path} holds {len(pickles)} files data.pkl; a checkpoint holds one")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in entries:
        order = _content(file, entries[f"{folder}byteorder"], 16)
        if order != b"little":
            raise ModelError(f"{file.path} was saved in byte order {order!r}; Hearth reads little")
    storages: dict[str, _Storage] = {}

    def storage(id: Any) -> _Storage:
        """A tensor's storage from ("storage", type, key, device, count of elements)."""
        if type(id) is not tuple or len(id) != 5 or id[0] != "storage":
            raise ModelError(f"{file.path}: a persistent id is {shown(id)}")
        _, made, key, _, count = id
        if type(key) is not str or type(count) is not int or count < 0:
            raise ModelError(f"{file.path}: a storage is {shown(id)}")
        kind, element = _kind_of(made)
        entry = entries.get(f"{folder}data/{key}")
        if entry is None:
            raise ModelError(f"{file.path}: storage data/{key} is missing; it is truncated")
        if key not in storages:
            storages[key] = _Storage(kind, element, _offset(file, entry), count)
        if entry.file_size != count * element or storages[key].kind != kind:
            raise ModelError(
                f"{file.path}: storage data/{key} has {entry.file_size} bytes, but should have "
                f"{count} elements of {kind}"
            )
        return storages[key]

    def tensor(stored: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        return _tensor(file.path, stored, offset, shape, strides)

    known: Known = {
        ("collections", "OrderedDict"): _ordered,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch", "Size"): _size,
        **{("torch", name): _never for name in _STORAGES},
    }
    data = _content(file, entries[pickles[0]], MAX_BYTES)
    return read_pickle(data, f"{file.path} (data.pkl)", known, storage)


def _kind_of(made: Any) -> tuple[str, int]:
    """The element's type of a storage's class, which the pickle names."""
    name = getattr(made, "shown", "")
    found = _STORAGES.get(name.removeprefix("torch."))
    if found is None:
        raise ModelError(f"a tensor's storage is of type {shown(name)}, which is not known")
    return found


def _ordered(*items: Any) -> dict[Any, Any]:
    if items:
        raise TypeError("an ordered dictionary is made of items")
    return {}


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    if type(numbers) is not tuple or len(numbers) > _MAX_DIMENSIONS:
        raise ValueError(f"a torch.Size is not of at most {_MAX_DIMENSIONS} numbers")
    return numbers


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _never(*_: Any) -> Any:
    raise ValueError("a storage is made without its numbers")


def _tensor(path: Path, stored: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A tensor within its storage. Raises ModelError unless it is whole and in order."""
    if not isinstance(stored, _Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise ModelError(f"{path}: a tensor is made of what is not a storage and a shape")
    numbers = (offset, *shape, *strides)
    if (
        len(shape) > _MAX_DIMENSIONS
        or len(shape) != len(strides)
        or not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
    ):
        raise ModelError(f"{path}: a tensor has the impossible shape {shown(shape)}")
    count = math.prod(shape)
    if offset + count > stored.count:
        raise ModelError(
            f"{path}: a tensor of shape {list(shape)} ends at element {offset + count} of a "
            f"storage of {stored.count}"
        )
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            raise ModelError(
                f"{path}: a tensor of shape {list(shape)} has its numbers in another order "
                f"(strides {list(strides)}); save it with .contiguous()"
            )
        expected *= size
    return Tensor(stored.kind, shape, stored.offset + offset * stored.element)


def _content(file: OpenFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    if entry.file_size > limit:
        raise ModelError(
            f"{file.path}: {entry.filename} has {entry.file_size} bytes; the limit is {limit}"
        )
    return file.read(_offset(file, entry), entry.file_size).tobytes()


def _offset(file: OpenFile, entry: zipfile.ZipInfo) -> int:
    """The place of a stored file's first byte. Raises ModelError where it is not stored whole."""
    name = entry.filename[:80]
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise ModelError(f"{file.path}: {name} is compressed or encrypted; torch.save does neither")
    begin = entry.header_offset
    if not 0 <= begin <= file.size - _LOCAL_HEADER.size:
        raise ModelError(f"{file.path}: {name} begins at byte {begin} of {file.size}")
    header = file.read(begin, _LOCAL_HEADER.size).tobytes()
    magic, name_size, extra_size = _LOCAL_HEADER.unpack(header)
    offset = begin + _LOCAL_HEADER.size + name_size + extra_size
    if magic != ZIP_MAGIC or entry.file_size != entry.compress_size:
        raise ModelError(f"{file.path}: {name} has a damaged header in the archive")
    if offset + entry.file_size > file.size:
        raise ModelError(
            f"{file.path}: {name} ends at byte {offset + entry.file_size}, but the file has "
            f"{file.size}; it is truncated"
        )
    return int(offset)
