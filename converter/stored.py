"""Tensors as files hold them, and their rows in the order that Hearth reads them.

A file may hold a tensor fused with others, transposed, its rows in another order, or in pieces.
Each of these is a form around the piece as it is stored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.fingerprint import fingerprint
from hearth.converter.weights import Bytes, row_bytes

F32 = npt.NDArray[np.float32]
Function = Callable[[F32], F32]
Indices = npt.NDArray[np.int64]
Place = tuple[OpenFile, int, int]

_FLOATS = {"f32": 4, "f16": 2, "bf16": 2}


class Stored(ABC):
    """Rows of `kind` (a type of Hearth or of a file), [rows, columns] elements.

    A vector has one row.
    """

    kind: str
    rows: int
    columns: int

    @abstractmethod
    def places(self) -> list[Place]:
        """(file, offset, bytes) of each piece that it is read from."""

    @abstractmethod
    def form(self) -> list[str | int]:
        """A description of how it is made from its pieces: equal for equal results."""

    @abstractmethod
    def read_rows(self, begin: int, end: int) -> Bytes:
        """Rows [begin, end), uint8 [rows, row_bytes]."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return row_bytes(self.kind, self.columns)

    @property
    def as_stored(self) -> bool:
        """True if rows are read as they lie in the file, without another copy."""
        return False


@dataclass(frozen=True)
class StoredTensor(Stored):
    """A tensor's place in a file: its rows, one after another."""

    file: OpenFile
    offset: int
    kind: str
    rows: int
    columns: int

    def places(self) -> list[Place]:
        return [(self.file, self.offset, self.rows * self.row_bytes)]

    def form(self) -> list[str | int]:
        return [self.kind, self.rows, self.columns]

    def read_rows(self, begin: int, end: int) -> Bytes:
        width = self.row_bytes
        data = self.file.read(self.offset + begin * width, (end - begin) * width)
        return data.reshape(end - begin, width)

    @property
    def as_stored(self) -> bool:
        return True


@dataclass(frozen=True)
class StoredBytes:
    """Rows of bytes in a file: a piece of a tensor that is stored in several."""

    file: OpenFile
    offset: int
    rows: int
    width: int

    def place(self) -> Place:
        """(file, offset, bytes)."""
        return self.file, self.offset, self.rows * self.width

    def read_rows(self, begin: int, end: int) -> Bytes:
        """Rows [begin, end), uint8 [rows, width]."""
        data = self.file.read(self.offset + begin * self.width, (end - begin) * self.width)
        return data.reshape(end - begin, self.width)


class PickedRows(Stored):
    """Some rows of another, in any order. Of a vector: some of its elements.

    picked: i64 [rows] (of a vector [columns]), the index in the other of each.
    """

    def __init__(self, inner: Stored, picked: Indices) -> None:
        self._inner, self._picked = inner, picked
        self._vector = inner.rows == 1
        self.kind = inner.kind
        self.rows = 1 if self._vector else len(picked)
        self.columns = len(picked) if self._vector else inner.columns

    def places(self) -> list[Place]:
        return self._inner.places()

    def form(self) -> list[str | int]:
        order = fingerprint([self._picked.astype("<i8").tobytes()])
        return ["picked", order.hex(), *self._inner.form()]

    def read_rows(self, begin: int, end: int) -> Bytes:
        if self._vector:
            elements = self._inner.read_rows(begin, end).reshape(self._inner.columns, -1)
            return np.ascontiguousarray(elements[self._picked]).reshape(end - begin, -1)
        picked = self._picked[begin:end]
        if not len(picked):
            return np.empty((0, self.row_bytes), dtype=np.uint8)
        low, high = int(picked.min()), int(picked.max()) + 1
        data = self._inner.read_rows(low, high)
        if high - low == len(picked) and np.array_equal(picked, np.arange(low, high)):
            return data
        return np.take(data, picked - low, axis=0)


class PickedColumns(Stored):
    """Runs of neighbouring columns of another in another order.

    picked: i64, the number of the run that each run of the result is. run: columns of each, whole
    blocks of the type.
    """

    def __init__(self, inner: Stored, picked: Indices, run: int) -> None:
        self._inner, self._picked, self._run = inner, picked, run
        self._bytes = row_bytes(inner.kind, run)
        self.kind, self.rows, self.columns = inner.kind, inner.rows, len(picked) * run

    def places(self) -> list[Place]:
        return self._inner.places()

    def form(self) -> list[str | int]:
        order = fingerprint([self._picked.astype("<i8").tobytes()])
        return ["picked columns", order.hex(), self._run, *self._inner.form()]

    def read_rows(self, begin: int, end: int) -> Bytes:
        runs = self._inner.read_rows(begin, end).reshape(end - begin, -1, self._bytes)
        return np.take(runs, self._picked, axis=1).reshape(end - begin, -1)


class Stacked(Stored):
    """Several of equal shape and type, one below the other (vectors: one behind the other)."""

    def __init__(self, parts: Sequence[Stored]) -> None:
        first = parts[0]
        for part in parts[1:]:
            if (part.kind, part.rows, part.columns) != (first.kind, first.rows, first.columns):
                raise ModelError(
                    f"parts of one tensor are {first.kind} [{first.rows}, {first.columns}] and "
                    f"{part.kind} [{part.rows}, {part.columns}]; they must be alike"
                )
        self._parts = tuple(parts)
        self._vector = first.rows == 1
        self.kind = first.kind
        self.rows = 1 if self._vector else len(parts) * first.rows
        self.columns = len(parts) * first.columns if self._vector else first.columns

    def places(self) -> list[Place]:
        return [place for part in self._parts for place in part.places()]

    def form(self) -> list[str | int]:
        return ["stacked", len(self._parts), *self._parts[0].form()]

    def read_rows(self, begin: int, end: int) -> Bytes:
        if self._vector:
            return np.concatenate([part.read_rows(begin, end) for part in self._parts], axis=1)
        each = self._parts[0].rows
        found = []
        while begin < end:
            part, within = divmod(begin, each)
            count = min(end - begin, each - within)
            found.append(self._parts[part].read_rows(within, within + count))
            begin += count
        return found[0] if len(found) == 1 else np.concatenate(found)


class Transposed(Stored):
    """Another of f32, f16 or bf16 with rows and columns exchanged."""

    def __init__(self, inner: Stored) -> None:
        if inner.kind not in _FLOATS:
            raise ModelError(f"a tensor of {inner.kind} cannot be transposed; get it in f16 or f32")
        self._inner = inner
        self.kind, self.rows, self.columns = inner.kind, inner.columns, inner.rows

    def places(self) -> list[Place]:
        return self._inner.places()

    def form(self) -> list[str | int]:
        return ["transposed", *self._inner.form()]

    def read_rows(self, begin: int, end: int) -> Bytes:
        size = _FLOATS[self.kind]
        whole = self._inner.read_rows(0, self._inner.rows)
        cut = whole.reshape(self._inner.rows, self._inner.columns, size)[:, begin:end]
        return np.ascontiguousarray(cut.swapaxes(0, 1)).reshape(end - begin, -1)


class Computed(Stored):
    """A vector in f32, computed from another by a function of its elements: weights less one."""

    kind = "f32"

    def __init__(self, inner: Stored, name: str, function: Function) -> None:
        """name: of the function, for `form`."""
        if inner.kind not in _FLOATS or inner.rows != 1:
            raise ModelError(f"a vector is {inner.kind} [{inner.rows}, {inner.columns}]")
        self._inner, self._name, self._function = inner, name, function
        self.rows, self.columns = inner.rows, inner.columns

    def places(self) -> list[Place]:
        return self._inner.places()

    def form(self) -> list[str | int]:
        return [self._name, *self._inner.form()]

    def read_rows(self, begin: int, end: int) -> Bytes:
        data = np.ascontiguousarray(self._inner.read_rows(begin, end))
        if self._inner.kind == "bf16":
            values = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = data.view({"f32": "<f4", "f16": "<f2"}[self._inner.kind]).astype(np.float32)
        return np.ascontiguousarray(self._function(values), dtype="<f4").view(np.uint8)


class Zeros(Stored):
    """A vector of zeros, f32: the bias of a norm that has none."""

    kind = "f32"
    rows = 1

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def places(self) -> list[Place]:
        return []

    def form(self) -> list[str | int]:
        return ["zeros", self.columns]

    def read_rows(self, begin: int, end: int) -> Bytes:
        return np.zeros((end - begin, self.row_bytes), dtype=np.uint8)
