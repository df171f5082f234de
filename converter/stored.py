"""Tensors as files hold them, and their rows in the order that Hearth reads them.

A file may hold a tensor fused with others, transposed, its rows in another order, or in pieces.
Each of these is a form around the piece as it is stored.
"""

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.fingerprint import fingerprint
from hearth.converter.rare_types import UNPACKED
from hearth.converter.weights import Bytes, convert_rows, row_bytes

F32 = npt.NDArray[np.float32]
Function = Callable[[F32], F32]
Indices = npt.NDArray[np.int64]
Place = tuple[OpenFile, int, int]

_FLOATS = {"f32": 4, "f16": 2, "bf16": 2}
_BLOCK_NUMBERS = 1 << 20  # elements read at once: 4 MiB as f32
# Of turned matrices, the bytes of neighbouring rows that are kept, and how many such bands.
_BAND_BYTES = 32 << 20
_MOST_BANDS = 4


class UnfitError(ModelError):
    """A stored tensor that cannot be read in the wanted form; does not name it."""


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


class Order:
    """Indices in few bytes: the first, and runs of equal steps from each to the next.

    A model has an order for each of its tensors, most of them a stride, or some for each head.
    """

    def __init__(self, indices: Indices) -> None:
        """indices: i64 [count]."""
        self._count = len(indices)
        self._first = int(indices[0]) if self._count else 0
        steps = np.diff(indices)
        begins = np.flatnonzero(np.diff(steps, prepend=steps[:1] - 1))
        self._steps = steps[begins]
        self._runs = np.diff(begins, append=len(steps))

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """Bytes of the runs."""
        return self._steps.nbytes + self._runs.nbytes

    def indices(self, begin: int = 0, end: int | None = None) -> Indices:
        """Indices [begin, end), all where None, i64."""
        end = self._count if end is None else min(end, self._count)
        if len(self._runs) == 1:
            return self._first + np.arange(begin, end, dtype=np.int64) * int(self._steps[0])
        found = np.empty(self._count, dtype=np.int64)
        found[:1] = self._first
        found[1:] = np.repeat(self._steps, self._runs)
        return np.cumsum(found)[begin:end]

    def form(self) -> str:
        """A digest: equal for equal indices."""
        return fingerprint([self.indices().astype("<i8").tobytes()]).hex()


class PickedRows(Stored):
    """Some rows of another, in any order. Of a vector: some of its elements.

    picked: i64 [rows] (of a vector [columns]), the index in the other of each.
    """

    def __init__(self, inner: Stored, picked: Indices) -> None:
        self._inner, self._order = inner, Order(picked)
        self._vector = inner.rows == 1
        self.kind = inner.kind
        self.rows = 1 if self._vector else len(picked)
        self.columns = len(picked) if self._vector else inner.columns

    def places(self) -> list[Place]:
        return self._inner.places()

    def form(self) -> list[str | int]:
        return ["picked", self._order.form(), *self._inner.form()]

    def read_rows(self, begin: int, end: int) -> Bytes:
        if self._vector:
            elements = self._inner.read_rows(begin, end).reshape(self._inner.columns, -1)
            return np.ascontiguousarray(elements[self._order.indices()]).reshape(end - begin, -1)
        picked = self._order.indices(begin, end)
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
        self._inner, self._order, self._run = inner, Order(picked), run
        self._bytes = row_bytes(inner.kind, run)
        self.kind, self.rows, self.columns = inner.kind, inner.rows, len(picked) * run

    def places(self) -> list[Place]:
        return self._inner.places()

    def form(self) -> list[str | int]:
        return ["picked columns", self._order.form(), self._run, *self._inner.form()]

    def read_rows(self, begin: int, end: int) -> Bytes:
        runs = self._inner.read_rows(begin, end).reshape(end - begin, -1, self._bytes)
        return np.take(runs, self._order.indices(), axis=1).reshape(end - begin, -1)


class Stacked(Stored):
    """Several of equal shape and type, one below the other (vectors: one behind the other)."""

    def __init__(self, parts: Sequence[Stored]) -> None:
        first = parts[0]
        for part in parts[1:]:
            if (part.kind, part.rows, part.columns) != (first.kind, first.rows, first.columns):
                raise UnfitError(
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


class Unpacked(Stored):
    """Another of any format, in f32. It is loaded as q8_0 where nothing else is asked for."""

    kind = "unpacked"

    def __init__(self, inner: Stored) -> None:
        self._inner = inner
        self.rows, self.columns = inner.rows, inner.columns

    def places(self) -> list[Place]:
        return self._inner.places()

    def form(self) -> list[str | int]:
        return ["unpacked", *self._inner.form()]

    def read_rows(self, begin: int, end: int) -> Bytes:
        data = self._inner.read_rows(begin, end)
        # No number is too large for f32, and those that are not finite are looked for later.
        return convert_rows(data, self._inner.kind, "f32", (0, self.columns), "")[0]


class _Bands:
    """The bands of turned matrices that were read last. Safe to use from several threads.

    A band goes when its last row is read, when others come, or with its matrix.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # In the order of their last use.
        self._kept: weakref.WeakKeyDictionary[Transposed, tuple[int, Bytes]] = (
            weakref.WeakKeyDictionary()
        )

    def find(self, matrix: "Transposed", begin: int, end: int) -> Bytes | None:
        """Rows [begin, end) of a matrix; None if they are not kept."""
        with self._lock:
            first, band = self._kept.pop(matrix, (0, None))
            if band is None:
                return None
            last = first + len(band)
            if end < last:
                self._kept[matrix] = first, band
            return band[begin - first : end - first] if first <= begin and end <= last else None

    def keep(self, matrix: "Transposed", first: int, band: Bytes) -> None:
        """Keep rows of a matrix from `first`; the oldest others go."""
        with self._lock:
            self._kept.pop(matrix, None)
            self._kept[matrix] = first, band
            while len(self._kept) > _MOST_BANDS:
                del self._kept[next(iter(self._kept))]


_bands = _Bands()


class Transposed(Stored):
    """Another with rows and columns exchanged; its type, or f32 where elements share a scale.

    All rows of the other are read for any of these: as many as fit in a band are kept, for the next
    rows to be read from it.
    """

    def __init__(self, inner: Stored) -> None:
        if inner.kind not in _FLOATS and inner.kind not in UNPACKED:
            inner = Unpacked(inner)
        self._inner = inner
        self.kind, self.rows, self.columns = inner.kind, inner.columns, inner.rows

    def places(self) -> list[Place]:
        return self._inner.places()

    def form(self) -> list[str | int]:
        return ["transposed", *self._inner.form()]

    def read_rows(self, begin: int, end: int) -> Bytes:
        found = _bands.find(self, begin, end)
        if found is not None:
            return found
        last = min(self.rows, max(end, begin + _BAND_BYTES // max(1, self.row_bytes)))
        band = self._turned(begin, last)
        if end < last:
            _bands.keep(self, begin, band)
        return band[: end - begin]

    def _turned(self, begin: int, end: int) -> Bytes:
        """Rows [begin, end), by one pass over the other."""
        element = {2: "<u2", 4: "<u4"}[row_bytes(self.kind, 1)]
        turned = np.empty((end - begin, self.columns), dtype=element)
        step = max(1, _BLOCK_NUMBERS // max(1, self.rows))
        for first in range(0, self.columns, step):
            last = min(first + step, self.columns)
            block = np.ascontiguousarray(self._inner.read_rows(first, last)).view(element)
            turned[:, first:last] = block[:, begin:end].T
        return turned.view(np.uint8)


class Computed(Stored):
    """A vector in f32, computed from another by a function of its elements: weights less one."""

    kind = "f32"

    def __init__(self, inner: Stored, name: str, function: Function) -> None:
        """name: of the function, for `form`."""
        if inner.kind not in _FLOATS or inner.rows != 1:
            raise UnfitError(f"a vector is {inner.kind} [{inner.rows}, {inner.columns}]")
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
