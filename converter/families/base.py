"""A family of models: a reader of its configuration, and recipes for its tensors.

A recipe says how one tensor of Hearth's table is found in the files. Most are the name of a stored
tensor; the others pick rows of it, put several together, or turn it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hearth.converter.blocks import AttentionSpec
from hearth.converter.errors import ModelError
from hearth.converter.families.settings import Settings
from hearth.converter.files import OpenFile
from hearth.converter.spec import ModelSpec
from hearth.converter.stored import (
    Computed,
    Function,
    Indices,
    PickedRows,
    Stacked,
    Stored,
    StoredBytes,
    StoredTensor,
    Transposed,
    UnfitError,
)
from hearth.converter.tensors import TensorSpec
from hearth.converter.weights import is_format, row_bytes


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file: its place, type (its name there, if it can't be read) and shape.

    made: its rows, where it is stored in pieces, of which this is the place of one.
    """

    file: OpenFile
    offset: int
    kind: str
    shape: tuple[int, ...]
    made: Stored | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes in the file. Raises ModelError where blocks do not fit the rows."""
        return _product(self.shape[:-1]) * row_bytes(self.kind, self.shape[-1] if self.shape else 1)


class Files:
    """The tensors of a model's files, by the names that they have there."""

    def __init__(
        self, tensors: Mapping[str, FileTensor], source: str, missing: str, readable: Sequence[str]
    ) -> None:
        """For errors, source: the files' name; missing: the reason that a tensor is wanted;
        readable: types that can be read."""
        self._readable = readable
        self._tensors = tensors
        self.source = source
        self._missing = missing
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as stored. Raises ModelError where it is missing."""
        return self._find(name).shape

    def matrix(self, name: str, rows: int, columns: int) -> Stored:
        """A stored matrix; leading dimensions count as rows.

        Raises ModelError: it is missing, has another shape, or reaches beyond its file.
        """
        found = self._find(name)
        shape = found.shape
        if len(shape) < 2 or shape[-1] != columns or _product(shape[:-1]) != rows:
            raise self._misshapen(name, found, [rows, columns])
        return self._stored(name, found, rows, columns)

    def vector(self, name: str, size: int) -> Stored:
        """A stored vector, [1, size]. Raises ModelError as `matrix`."""
        found = self._find(name)
        if not found.shape or _product(found.shape) != size or max(found.shape) > size:
            raise self._misshapen(name, found, [size])
        return self._stored(name, found, 1, size)

    def bytes_of(self, name: str, rows: int, width: int) -> StoredBytes:
        """A stored tensor of bytes; leading dimensions count as rows. Raises as `matrix`."""
        found = self._find(name)
        if found.kind not in _BYTES:
            raise ModelError(f"{found.file.path}: tensor {name} is {found.kind}, not bytes")
        if _product(found.shape) != rows * width or not found.shape or found.shape[0] > rows:
            raise self._misshapen(name, found, [rows, width])
        self._check_end(name, found, rows * width)
        return StoredBytes(found.file, found.offset, rows, width)

    def ignore(self, names: Iterable[str]) -> None:
        """Count tensors as used."""
        self._used.update(names)

    def left(self) -> list[str]:
        """Names of the tensors that nothing was made of."""
        return sorted(self._tensors.keys() - self._used)

    def _find(self, name: str) -> FileTensor:
        self._used.add(name)
        found = self._tensors.get(name)
        if found is None:
            raise ModelError(f"{self.source}: tensor {name} is missing; {self._missing}")
        return found

    def _misshapen(self, name: str, found: FileTensor, wanted: list[int]) -> ModelError:
        return ModelError(
            f"{found.file.path}: tensor {name} has shape {list(found.shape)}, but the "
            f"configuration makes it {wanted}; the two belong to different models"
        )

    def _stored(self, name: str, found: FileTensor, rows: int, columns: int) -> Stored:
        if found.made is not None:
            return found.made
        if not is_format(found.kind):
            raise ModelError(
                f"{found.file.path}: tensor {name} is {found.kind}, which Hearth can't read; types "
                f"it reads here: {', '.join(self._readable)}"
            )
        try:
            size = rows * row_bytes(found.kind, columns)
        except ModelError as error:
            raise ModelError(f"{found.file.path}: tensor {name}: {error}") from error
        self._check_end(name, found, size)
        return StoredTensor(found.file, found.offset, found.kind, rows, columns)

    def _check_end(self, name: str, found: FileTensor, size: int) -> None:
        if found.offset + size > found.file.size:
            raise ModelError(
                f"{found.file.path}: tensor {name} ends at byte {found.offset + size}, but the "
                f"file has {found.file.size}; it is truncated, download it again"
            )


# Types of safetensors files for bytes.
_BYTES = ("U8", "I8")


def _product(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


# A name in the files, with {layer} and {expert} in it, or a function that finds the tensor.
Recipe = str | Callable[[Files, ModelSpec, TensorSpec], Stored]
Names = Mapping[str, Recipe]


@dataclass(frozen=True)
class Family:
    """A family's configuration and tensors, in Hugging Face directories and in GGUF files."""

    # The name that people know, for errors.
    name: str
    # Values of model_type in config.json, and classes for files without one.
    model_types: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    # (config.json, the model's name) -> its shape.
    config: Callable[[Settings, str], ModelSpec] | None = None
    # Settings of config.json that it reads, of those that neutral.py refuses otherwise.
    reads: tuple[str, ...] = ()
    # Further names of settings in config.json: (the name, the usual one).
    aliases: tuple[tuple[str, str], ...] = ()
    tensors: Names = field(default_factory=dict)
    # Before the names of all tensors but the head's; some files leave it out.
    prefix: str = "model."
    # Beginnings of names of stored tensors that the text part does not use.
    unused: tuple[str, ...] = ()
    # Layers behind the model's that guess further tokens, where config.json has no
    # num_nextn_predict_layers; None: the family has none.
    further_layers: int | None = None
    # Endings of names of stored tensors that no model uses.
    unused_endings: tuple[str, ...] = ()
    # Values of general.architecture in GGUF.
    architectures: tuple[str, ...] = ()
    # (metadata under the architecture's name, the model's name, facts of the file) -> its shape.
    gguf: "Callable[[Settings, str, GgufFacts], ModelSpec] | None" = None
    gguf_tensors: Names = field(default_factory=dict)
    # metadata -> recipes beside gguf_tensors, for files whose tensors are laid out otherwise.
    gguf_layout: "Callable[[Settings], Names]" = lambda metadata: {}

    @property
    def embedding(self) -> str:
        """The stored name of the embedding in a Hugging Face directory."""
        name = self.tensors["embedding"]
        assert isinstance(name, str)
        return name


@dataclass(frozen=True)
class GgufFacts:
    """Facts that a GGUF file's tensors tell beside its metadata.

    vocab_size: rows of the embedding. rope_factors: by the names "rope_freqs", "rope_factors_long",
    "rope_factors_short", as far as the file has them. has: whether a tensor is there.
    block: columns of a block of its type; 1 where it is absent.
    """

    vocab_size: int
    rope_factors: Mapping[str, tuple[float, ...]]
    has: Callable[[str], bool]
    block: Callable[[str], int] = lambda name: 1

    @property
    def tied(self) -> bool:
        """True if there is no head of its own."""
        return not self.has("output.weight")


def find(files: Files, spec: ModelSpec, tensor: TensorSpec, recipe: Recipe) -> Stored:
    """A tensor of the table in the files. Raises ModelError."""
    try:
        return _found(files, spec, tensor, recipe)
    except UnfitError as error:
        raise ModelError(f"{files.source}: tensor {tensor.name}: {error}") from error


def _found(files: Files, spec: ModelSpec, tensor: TensorSpec, recipe: Recipe) -> Stored:
    if not isinstance(recipe, str):
        return recipe(files, spec, tensor)
    rows, columns = tensor.shape
    name = recipe.replace("{layer}", str(tensor.layer))
    if "{expert}" not in name:
        return files.vector(name, columns) if rows == 1 else files.matrix(name, rows, columns)
    parts: list[Stored] = []
    for expert in range(tensor.parts):
        each = name.replace("{expert}", str(expert))
        if tensor.vector:
            parts.append(files.vector(each, columns // tensor.parts))
        else:
            parts.append(files.matrix(each, rows // tensor.parts, columns))
    return Stacked(parts)


def rows_of(name: str, of: Callable[[ModelSpec, TensorSpec], tuple[int, int]]) -> Recipe:
    """Neighbouring rows (elements of a vector) of a stored tensor that holds more.

    of: (spec, tensor) -> (the first row, rows of the stored tensor).
    """

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        first, stored_rows = of(spec, tensor)
        count = tensor.shape[1] if tensor.vector else tensor.shape[0]
        stored = _whole(files, name, tensor, stored_rows)
        return PickedRows(stored, np.arange(first, first + count))

    return recipe


def picked(name: str, order: Callable[[ModelSpec, TensorSpec], Indices]) -> Recipe:
    """A stored tensor's rows (a vector's elements) in another order.

    order: (spec, tensor) -> the stored index of each, as many as the tensor has.
    """

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        count = tensor.shape[1] if tensor.vector else tensor.shape[0]
        # The file is asked first: the order of a wrong shape may be a large array.
        stored = _whole(files, name, tensor, count)
        return PickedRows(stored, order(spec, tensor))

    return recipe


def transposed(name: str) -> Recipe:
    """A matrix that is stored [columns, rows]."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        rows, columns = tensor.shape
        return Transposed(files.matrix(_named(name, tensor), columns, rows))

    return recipe


def computed(name: str, form: str, function: Function) -> Recipe:
    """A vector, computed from a stored one. form: a name for the function."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        return Computed(files.vector(_named(name, tensor), tensor.shape[1]), form, function)

    return recipe


def one_more(name: str) -> Recipe:
    """A norm's weight, stored less one."""
    return computed(name, "plus one", lambda values: values + np.float32(1))


def rotary_pairs(spec: ModelSpec, tensor: TensorSpec) -> Indices:
    """Order of rows where the halves of each head's rotary part lie in turn: 0, n, 1, n + 1 ..."""
    attention = spec.kinds[spec.kind_of_layer[tensor.layer]].mixer
    assert isinstance(attention, AttentionSpec)
    size = attention.key_size
    pairs = len(spec.ropes[attention.rope].frequencies) if attention.rope is not None else 0
    head = np.arange(size)
    head[: 2 * pairs] = np.concatenate([np.arange(0, 2 * pairs, 2), np.arange(1, 2 * pairs, 2)])
    count = (tensor.shape[1] if tensor.vector else tensor.shape[0]) // size
    return (np.arange(count)[:, None] * size + head).reshape(-1)


def _named(name: str, tensor: TensorSpec) -> str:
    return name.replace("{layer}", str(tensor.layer))


def _whole(files: Files, name: str, tensor: TensorSpec, rows: int) -> Stored:
    """A stored tensor of so many rows (elements of a vector) of the tensor's width."""
    stored_name = _named(name, tensor)
    if tensor.vector:
        return files.vector(stored_name, rows)
    return files.matrix(stored_name, rows, tensor.shape[1])
