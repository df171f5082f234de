"""The interface of model sources: a shape, a tokenizer, and cuts of tensors in a chosen type.

`Model` is the interface; `FileModel` implements it for tensors stored row by row in files. It
reads by `pread`, a block of rows at a time, so at most the requested cut is in memory. A file that
changes under a running root is an error, never a mixture of old and new weights.
"""

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.fingerprint import Digests, fingerprint
from hearth.converter.mixes import check_weights, is_mix, mixed_type
from hearth.converter.pooling import Pooling
from hearth.converter.spec import ModelSpec
from hearth.converter.stored import Stored
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.weights import (
    FORMATS,
    Bytes,
    check_type,
    convert_rows,
    effective_type,
    is_quantized,
    loaded_type,
    row_bytes,
)

log = logging.getLogger(__name__)

# A tokenizer with this many tokens beyond the embedding is another model's.
_MOST_UNUSED_TOKENS = 256
_BLOCK_NUMBERS = 1 << 20  # elements in a block of rows under conversion: 4 MiB as f32

# The remark on a model that is more than its text part.
TEXT_PART = "it also reads images or sound; Hearth runs its text part"

Span = tuple[int, int]


@dataclass(frozen=True)
class TokenizerSource:
    """Source of a model's tokenizer.

    load: make the tokenizer. files: name to path or content of the files that a converted model
    needs for it; empty where there are none. bos_id, eos_ids: as the model's own files name them.
    plain: the byte tokenizer, which needs no files.
    """

    load: Callable[[], Tokenizer]
    files: Callable[[], dict[str, Path | bytes]]
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    plain: bool = False


class Model(ABC):
    """A model's shape, weights and tokenizer. Safe to read from several threads at once."""

    def __init__(self, spec: ModelSpec, weights: str | None, tokenizer: TokenizerSource) -> None:
        self.spec = spec
        self.tokenizer_source = tokenizer
        # Settings of the files that are not of the shape: those of the tokenizer.
        self.config: Mapping[str, Any] = {}
        self._requested = check_weights(weights) if weights is not None else None
        # By tensor: a plan asks for each several times.
        self._types: dict[str, str] = {}
        # Sampling that the model's makers recommend: temperature, top_k, top_p and so on.
        self.sampling_defaults: Mapping[str, float] = {}
        # What people should know of how it is read: types that are converted, parts that do not
        # run. Without the model's name.
        self.remarks: list[str] = []
        # How its hidden states become the vector of a text.
        self.pooling = Pooling()
        # Names besides the spec's that mean it, too.
        self.aliases: Sequence[str] = ()

    def name(self, names: Sequence[str]) -> None:
        """Call the model by the first of `names`; the others mean it too."""
        if names[0] != self.spec.name:
            self.spec = replace(self.spec, name=names[0])
        self.aliases = names[1:]

    @property
    def notes(self) -> list[str]:
        """The remarks, each a line that begins with the model's name."""
        return [f"{self.spec.name}: {remark}" for remark in self.remarks]

    @property
    def requested_type(self) -> str | None:
        """The type or the mix chosen by --weights, if any."""
        return self._requested

    @cached_property
    def weight_type(self) -> str:
        """The one type chosen by --weights, else the type that most weights are loaded in."""
        if self._requested is not None and not is_mix(self._requested):
            return self._requested
        counts: Counter[str] = Counter()
        for name in self.spec.tensor_names():
            if not self.spec.tensor(name).vector:
                counts[self.tensor_type(name)] += math.prod(self._shape(name))
        # Of equally common types the more exact one, so that the result does not depend on order.
        return max(counts, key=lambda kind: (counts[kind], FORMATS[kind].bits))

    @abstractmethod
    def stored_type(self, name: str) -> str:
        """The type that a tensor is stored in, or loaded in where the core has no such type."""

    @abstractmethod
    def identity(self, name: str) -> bytes:
        """16 bytes, equal for equal content of a tensor; call `identify` before."""

    def identify(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Find the identity of every tensor, which may read all of them; False if `stop` ended it.

        Raises ModelError: a file cannot be read, or has changed since the model was opened.
        """
        return True

    def check_unchanged(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Raise ModelError if the weights are not those that were opened, naming the file.

        False if `stop` ended it.
        """
        return True

    def tensor_type(self, name: str) -> str:
        """The type to load a tensor in: f32 for vectors and routers; else as --weights has it, or
        as stored.

        Where the blocks of a type that was asked for do not fit the tensor's rows, its fallback.
        """
        kind = self._types.get(name)
        if kind is None:
            tensor = self.spec.tensor(name)
            kind = "f32"
            if not (tensor.vector or tensor.exact):
                kind = self.effective_type(name, self._asked(name) or self.stored_type(name))
            self._types[name] = kind
        return kind

    def effective_type(self, name: str, kind: str) -> str:
        """`kind`, or its fallback where its blocks do not fit the tensor's rows."""
        return effective_type(kind, self._shape(name)[1])

    def _asked(self, name: str) -> str | None:
        """The type that --weights gives a matrix, before its rows are looked at."""
        if self._requested is None or not is_mix(self._requested):
            return self._requested
        return mixed_type(self._requested, self.spec, self.spec.tensor(name))

    def read(
        self, name: str, kind: str, rows: Span | None = None, columns: Span | None = None
    ) -> Bytes:
        """A cut of a tensor as uint8 [rows, row_bytes(kind, columns)].

        rows, columns: [begin, end), the whole where None. The stored bytes themselves when `kind`
        is the stored type. Columns are cut on the blocks of `kind`.

        Raises:
            ModelError: no such tensor, a cut outside it or off a block, values that do not fit
                `kind`, or a file that cannot be read.
        """
        check_type(kind)
        shape = self._shape(name)
        rows, columns = rows or (0, shape[0]), columns or (0, shape[1])
        for what, (begin, end), size in (
            ("rows", rows, shape[0]),
            ("columns", columns, shape[1]),
        ):
            if not 0 <= begin <= end <= size:
                raise ModelError(f"{what} {begin} to {end} of {name} are outside its {size} {what}")
        if self.spec.tensor(name).vector and kind != "f32":
            raise ModelError(f"{name} is a vector, which is read as f32, not as {kind}")
        row_bytes(kind, columns[1] - columns[0])
        row_bytes(kind, columns[0])
        return self._cut(name, kind, rows, columns)

    @abstractmethod
    def _cut(self, name: str, kind: str, rows: Span, columns: Span) -> Bytes:
        """`read` with checked arguments."""

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, loaded once.

        Raises:
            ModelError: there is none, it is damaged, or it does not fit the model.
        """
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = self.tokenizer_source.load()
        more = tokenizer.vocab_size - self.spec.vocab_size
        if more > _MOST_UNUSED_TOKENS:
            raise ModelError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model's embedding only "
                f"{self.spec.vocab_size} rows; they belong to different models"
            )
        if more > 0:
            # As Llama 2's <pad>, added for training: no text has it, and the model cannot make it.
            log.warning(
                "the tokenizer has %d more tokens than the model's embedding has rows (%d); texts "
                "with them are refused",
                more,
                self.spec.vocab_size,
            )
        named = set(tokenizer.eos_ids)
        if tokenizer.bos_id is not None:
            named.add(tokenizer.bos_id)
        if tokenizer.bos_id is not None and tokenizer.bos_id >= self.spec.vocab_size:
            raise ModelError(
                f"texts begin with token {tokenizer.bos_id}, but the model's embedding has only "
                f"{self.spec.vocab_size} rows; the tokenizer belongs to another model"
            )
        missing = sorted(id for id in named if id >= tokenizer.vocab_size)
        if missing:
            raise ModelError(
                f"the configuration names token id {missing[0]} as begin or end of text, but the "
                f"tokenizer has only {tokenizer.vocab_size} tokens; they belong to different models"
            )
        return tokenizer

    def close(self) -> None:  # noqa: B027 - a model without files has nothing to close
        """Close the files. The model must not be used afterwards."""

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _shape(self, name: str) -> tuple[int, int]:
        try:
            return self.spec.tensor_shape(name)
        except KeyError:
            raise ModelError(f"{self.spec.name} has no tensor named {name!r}") from None


class FileModel(Model):
    """A model whose tensors are in files."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: str | None,
        tensors: Mapping[str, Stored],
        files: list[OpenFile],
        tokenizer: TokenizerSource,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(spec, weights, tokenizer)
        self.config = config or {}
        self._tensors = tensors
        self._files = files
        ranges: dict[OpenFile, list[tuple[int, int]]] = {file: [] for file in files}
        for file, offset, size in {place for t in tensors.values() for place in t.places()}:
            ranges[file].append((offset, size))
        self._digests = Digests(ranges)
        self._digesting = threading.Lock()
        self._replaced: set[OpenFile] = set()
        self._warned: set[str] = set()

    def identity(self, name: str) -> bytes:
        self._shape(name)
        tensor = self._tensors[name]
        digests = [self._digests.of(file, (at, size)) for file, at, size in tensor.places()]
        return fingerprint([*tensor.form(), *digests])

    def identify(self, stop: Callable[[], bool] = lambda: False) -> bool:
        with self._digesting:
            return self._digests.compute(stop)

    def check_unchanged(self, stop: Callable[[], bool] = lambda: False) -> bool:
        with self._digesting:
            unchanged = self._digests.check(stop)
        for file in self._files:
            if file not in self._replaced and file.replaced():
                self._replaced.add(file)
                log.warning(
                    "%s was replaced or removed: this root goes on with the file that it opened; "
                    "restart the root to load the new one",
                    file.path,
                )
        return unchanged

    def stored_type(self, name: str) -> str:
        self._shape(name)
        return loaded_type(self._tensors[name].kind)

    def _cut(self, name: str, kind: str, rows: Span, columns: Span) -> Bytes:
        tensor = self._tensors[name]
        whole = columns == (0, tensor.columns)
        if tensor.kind == kind and tensor.as_stored and whole:
            # As it is: not copied block by block.
            data, largest = convert_rows(tensor.read_rows(*rows), kind, kind, columns, name)
            self._check_finite(name, kind, largest)
            return data
        width = row_bytes(kind, columns[1] - columns[0])
        result = np.empty((rows[1] - rows[0], width), dtype=np.uint8)
        step = max(1, _BLOCK_NUMBERS // tensor.columns)
        for begin in range(rows[0], rows[1], step):
            end = min(begin + step, rows[1])
            stored = tensor.read_rows(begin, end)
            data, largest = convert_rows(stored, tensor.kind, kind, columns, name)
            self._check_finite(name, kind, largest)
            result[begin - rows[0] : end - rows[0]] = data
        return result

    def _check_finite(self, name: str, kind: str, largest: float) -> None:
        """Raise ModelError for a tensor with numbers that are not finite; warn where it may do.

        A row of the embedding is read only for its token: then only sequences with it fail.
        """
        if np.isfinite(largest):
            return
        problem = (
            f"tensor {name} holds numbers that are infinite or not numbers; the file is damaged, "
            "or the model was saved from a run that diverged"
        )
        if name != "embedding" or self.spec.tied or is_quantized(kind):
            raise ModelError(problem)
        if name not in self._warned:
            self._warned.add(name)
            log.warning("%s: requests with such a token will fail", problem)

    def close(self) -> None:
        for file in self._files:
            file.close()
