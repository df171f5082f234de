"""A node's shard of a model: from a checked ShardConfig to the compute core and its steps.

Used by the worker service, and by the root for its own shard; independent of gRPC. Every number of
a ShardConfig is checked against a limit before anything of its size is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common.channels import MAX_PAYLOAD_BYTES
from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size
from hearth.common.types import BLOCK, KV, WEIGHT, name_of
from hearth.v1 import common_pb2, worker_pb2

F32: TypeAlias = npt.NDArray[np.float32]
# A sequence in a step: its rows, the position of the first, and its pages, u32 [n] or a list.
Span: TypeAlias = tuple[int, int, npt.NDArray[np.uint32] | list[int]]
Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

# Well above every known model (the widest: hidden 16,384, 126 layers, feed-forward 53,248,
# vocabulary 256,000), and small enough that no product of them overflows 64 bits.
_LIMITS = {
    "hidden_size": 1 << 16,
    "head_size": 1 << 10,
    "page_size": 1 << 12,
    "max_pages": 1 << 24,
    "max_step_tokens": 1 << 16,
    "vocab_size": 1 << 21,
    "layers": 1 << 12,
    "heads": 1 << 12,
    "kv_heads": 1 << 12,
    "ffn": 1 << 20,
    "vocab": 1 << 21,
}
_MAX_POSITIONS = 1 << 31
# Limit of a step's intermediate values: 1,024 rows of the widest known model take 0.8 GiB.
_MAX_STEP_BYTES = 1 << 30
# Minimum size of a page of KV cache: each page is a memory mapping of its own.
_MAPPING_BYTES = 4096
# Rows are packed in groups (native matrix.h).
ROW_GROUP = 8


def check_config(config: common_pb2.ShardConfig) -> None:
    """Raises HearthError BAD_SHARD naming the first invalid number of `config`."""
    for name in (
        "hidden_size",
        "head_size",
        "page_size",
        "max_pages",
        "max_step_tokens",
        "vocab_size",
    ):
        _in_range(name, getattr(config, name), 1)
    for name in ("layers", "heads", "kv_heads", "ffn"):
        _range_in_range(name, getattr(config, name), 1)
    _range_in_range("vocab", config.vocab, 0)
    heads, kv_heads = _size(config.heads), _size(config.kv_heads)
    if heads % kv_heads:
        raise _bad(f"{heads} heads do not divide over {kv_heads} KV heads")
    if config.head_size % 2:
        raise _bad(f"head_size {config.head_size} is odd: rotary embedding rotates pairs")
    if len(config.rope_frequencies) != config.head_size // 2:
        raise _bad(
            f"{len(config.rope_frequencies)} rope_frequencies, head_size {config.head_size} "
            f"needs {config.head_size // 2}"
        )
    if not all(math.isfinite(value) for value in config.rope_frequencies):
        raise _bad("rope_frequencies hold a value that is not finite")
    if not (math.isfinite(config.norm_epsilon) and 0 <= config.norm_epsilon <= 1):
        raise _bad(f"norm_epsilon {config.norm_epsilon} is not within [0, 1]")
    if name_of(KV, config.kv_type) is None:
        raise _bad(f"unknown kv_type {config.kv_type}")
    if config.kv_type == KV["q80"] and config.head_size % BLOCK:
        raise _bad(f"kv_type q80 needs a head_size that divides by 32, not {config.head_size}")
    if config.max_pages * config.page_size > _MAX_POSITIONS:
        raise _bad(f"{config.max_pages} pages of {config.page_size} are too many positions")
    if config.head_from_embedding and not (config.embedding and _size(config.vocab)):
        raise _bad("head_from_embedding needs an embedding and vocabulary rows on this node")
    if config.head_from_embedding and config.vocab.end > config.vocab_size:
        raise _bad(
            f"vocabulary rows end at {config.vocab.end}, the embedding at {config.vocab_size}"
        )
    payload = config.max_step_tokens * config.hidden_size * 4
    if payload > MAX_PAYLOAD_BYTES:
        raise _bad(
            f"a step of {config.max_step_tokens} tokens x {config.hidden_size} is "
            f"{format_size(payload)}, more than a message's {format_size(MAX_PAYLOAD_BYTES)}: "
            f"use at most {MAX_PAYLOAD_BYTES // 4 // config.hidden_size} tokens a step"
        )
    step = step_bytes(config)
    if step > _MAX_STEP_BYTES:
        raise _bad(
            f"a step of {config.max_step_tokens} tokens needs {format_size(step)} of workspace, "
            f"more than {format_size(_MAX_STEP_BYTES)}: use fewer tokens a step"
        )


def kv_bytes(config: common_pb2.ShardConfig) -> int:
    """Bytes of KV cache when all pages are in use: K and V of every layer and KV head held."""
    per_head = _native.kv_head_bytes(_kv_name(config), config.head_size, config.page_size)
    per_page = _size(config.kv_heads) * per_head * _size(config.layers)
    return max(per_page, _MAPPING_BYTES) * config.max_pages


def step_bytes(config: common_pb2.ShardConfig) -> int:
    """Upper bound in bytes of a step's intermediate values: the core's workspace."""
    hidden, ffn = config.hidden_size, _size(config.ffn)
    q, kv = (_size(heads) * config.head_size for heads in (config.heads, config.kv_heads))
    quantized = max(hidden, q) + ffn  # int8, with a scale and a sum for each block
    # Attention and feed-forward take turns.
    floats = 2 * (hidden + max(q + kv, ffn)) + config.head_size
    return config.max_step_tokens * (4 * floats + quantized + quantized // 4)


class NodeShard:
    """One node's part of a model, and of each step.

    Raises HearthError: BAD_SHARD for an invalid config or slice, OUT_OF_MEMORY, BAD_STEP.
    """

    def __init__(
        self, config: common_pb2.ShardConfig, threads: int = 1, pin: Sequence[int] = ()
    ) -> None:
        """Computes with `threads` threads, pinned to the cores in `pin` unless it is empty."""
        check_config(config)
        self.config = config
        try:
            self._shard = _native.Shard(
                hidden_size=config.hidden_size,
                layers=_pair(config.layers),
                heads=_pair(config.heads),
                kv_heads=_pair(config.kv_heads),
                head_size=config.head_size,
                ffn=_pair(config.ffn),
                vocab=_pair(config.vocab),
                norm_epsilon=config.norm_epsilon,
                rope_frequencies=np.array(config.rope_frequencies, dtype=np.float32),
                kv_type=_kv_name(config),
                page_size=config.page_size,
                max_pages=config.max_pages,
                max_step_tokens=config.max_step_tokens,
                embedding=config.embedding,
                vocab_size=config.vocab_size,
                head_from_embedding=config.head_from_embedding,
                threads=threads,
                pin=list(pin),
            )
        except ValueError as error:
            raise _bad(str(error)) from None
        except MemoryError as error:
            raise _no_memory("the shard's buffers", error) from None

    def close(self) -> None:
        """Frees all memory now, even if references to this object remain. No step may be running.

        The error of a failed step holds its frames, and these the shard, until it is collected:
        without this a shard loaded meanwhile would be a second one in memory.
        """
        if hasattr(self, "_shard"):
            del self._shard

    def expected(self) -> dict[str, tuple[int, int]]:
        """Slice name -> (rows, columns) that this shard needs."""
        return dict(self._shard.expected())

    def missing(self) -> list[str]:
        """Names of slices not loaded yet; steps need all of them."""
        return list(self._shard.missing())

    def load(self, entry: worker_pb2.SliceEntry, data: Buffer, first_row: int = 0) -> None:
        """Packs rows of a slice from `first_row` on; `data` is not kept.

        Rows come in order, in groups of ROW_GROUP, up to the slice's last row. An incomplete slice
        may start again at row 0.
        """
        try:
            self._shard.load(entry.name, _weight_name(entry), data, first_row)
        except (ValueError, KeyError) as error:
            raise _bad(f"slice {entry.name!r}: {error}") from None
        except MemoryError as error:
            raise _no_memory(f"slice {entry.name!r}", error) from None

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights held now."""
        return int(self._shard.weight_bytes)

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV cache held now; grows with the pages in use."""
        return int(self._shard.kv_bytes)

    @property
    def kv_pages(self) -> int:
        """KV pages allocated now."""
        return int(self._shard.kv_pages)

    def embed(self, tokens: npt.NDArray[np.uint32]) -> F32:
        """float32 [len(tokens), hidden_size]; the node must hold the embedding."""
        try:
            return self._shard.embed(tokens)
        except ValueError as error:
            raise HearthError(Reason.BAD_STEP, str(error)) from None

    def step(
        self,
        activations: F32,
        sequences: Sequence[Span],
        output_rows: Sequence[int],
        lane: _native.Lane | None,
    ) -> _native.StepOutput:
        """One forward pass: activations f32 [rows, hidden_size], the rows of `sequences` in order.

        `output_rows` are the rows whose logits are returned. Exceptions of the lane pass through.
        """
        try:
            return self._shard.step(activations, list(sequences), list(output_rows), lane)
        except ValueError as error:
            raise HearthError(Reason.BAD_STEP, f"invalid step: {error}") from None
        except MemoryError as error:
            raise _no_memory("pages of KV cache", error) from None


def check_manifest(
    manifest: Iterable[worker_pb2.SliceEntry], expected: dict[str, tuple[int, int]]
) -> int:
    """Checks that a manifest names each slice of `expected` once, in its shape; its total bytes.

    Raises HearthError BAD_SHARD naming the wrong slice.
    """
    seen: set[str] = set()
    total = 0
    for entry in manifest:
        shape = expected.get(entry.name)
        if shape is None:
            raise _bad(f"slice {entry.name!r} is not part of this shard")
        if entry.name in seen:
            raise _bad(f"slice {entry.name!r} is listed twice")
        seen.add(entry.name)
        if (entry.rows, entry.columns) != shape:
            raise _bad(
                f"slice {entry.name!r} is [{entry.rows}, {entry.columns}], "
                f"the shard needs [{shape[0]}, {shape[1]}]"
            )
        size = slice_bytes(entry)
        if entry.size_bytes != size:
            raise _bad(f"slice {entry.name!r} is {size} bytes, not {entry.size_bytes}")
        if not 16 <= len(entry.identity) <= 64:
            raise _bad(
                f"slice {entry.name!r}: an identity of {len(entry.identity)} bytes, not 16 to 64"
            )
        total += size
    absent = [name for name in expected if name not in seen]
    if absent:
        raise _bad(f"{len(absent)} slices are not in the manifest, the first {absent[0]!r}")
    return total


def slice_bytes(entry: worker_pb2.SliceEntry) -> int:
    """Bytes of a slice of this type and shape. Raises HearthError BAD_SHARD."""
    try:
        return entry.rows * _native.row_bytes(_weight_name(entry), entry.columns)
    except ValueError as error:
        raise _bad(f"slice {entry.name!r}: {error}") from None


def _kv_name(config: common_pb2.ShardConfig) -> str:
    """ "f32", "f16" or "q80", already validated by check_config."""
    name = name_of(KV, config.kv_type)
    assert name is not None
    return name


def _weight_name(entry: worker_pb2.SliceEntry) -> str:
    """ "f32", "q40" ... Raises HearthError BAD_SHARD."""
    name = name_of(WEIGHT, entry.type)
    if name is None:
        raise _bad(f"slice {entry.name!r} has unknown type {entry.type}")
    return name


def _pair(value: common_pb2.Range) -> tuple[int, int]:
    return value.begin, value.end


def _size(value: common_pb2.Range) -> int:
    return value.end - value.begin


def _range_in_range(name: str, value: common_pb2.Range, least: int) -> None:
    if value.end < value.begin + least:
        raise _bad(f"{name} [{value.begin}, {value.end}) is empty")
    _in_range(name, value.end, 0)


def _in_range(name: str, value: int, least: int) -> None:
    if not least <= value <= _LIMITS[name]:
        raise _bad(f"{name} {value} is not within [{least}, {_LIMITS[name]}]")


def _bad(problem: str) -> HearthError:
    return HearthError(Reason.BAD_SHARD, problem)


def _no_memory(what: str, error: MemoryError) -> HearthError:
    problem = f"no memory for {what} ({error}); use more nodes, smaller weights or less context"
    return HearthError(Reason.OUT_OF_MEMORY, problem)
