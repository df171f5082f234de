"""A node's shard of a model: the compute core, its slices and its steps.

Used by the worker service, and by the root for its own shard; independent of gRPC.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common import devices
from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size
from hearth.common.types import WEIGHT, name_of
from hearth.v1 import common_pb2, worker_pb2
from hearth.worker.page_tables import PageTables
from hearth.worker.shape import check_config, most_sequences, native_config

F32: TypeAlias = npt.NDArray[np.float32]
# A sequence in a step: its rows, the position of the first, and its pages, u32 [n] or a list.
Span: TypeAlias = tuple[int, int, npt.NDArray[np.uint32] | list[int]]
Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

# Rows are packed in groups (native matrix.h).
ROW_GROUP = 8


class NodeShard:
    """One node's part of a model, and of each step.

    Raises HearthError: BAD_SHARD for an invalid config or slice, OUT_OF_MEMORY, BAD_STEP,
    WORKER_UNFIT for a GPU that fails.
    """

    def __init__(
        self,
        config: common_pb2.ShardConfig,
        threads: int = 1,
        pin: Sequence[int] = (),
        device: str = "cpu",
        folder: Path | None = None,
    ) -> None:
        """Computes with `threads` threads, pinned to the cores in `pin` unless it is empty.

        device: "cpu", "vulkan" or "vulkan:N". folder: of the weights on disk, if the config has
        any.
        """
        check_config(config)
        if config.disk_layers:
            check_disk(config, device, folder)
        self.config = config
        # Of the sequences of the plan that runs.
        self.tables = page_tables(config)
        self.device = device
        # Its GPU is lost, or hangs.
        self.failed = False
        info = devices.gpu_info(device)
        try:
            self._shard = _native.Shard(
                native_config(config),
                threads=threads,
                pin=list(pin),
                device=device if info is None else info.id,
                disk_layers=list(config.disk_layers),
                disk_folder=str(folder or ""),
            )
        except (ValueError, _native.DeviceError) as error:
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
        except _native.DeviceError as error:
            self.failed = True
            raise HearthError(Reason.OUT_OF_MEMORY, self._at_fault(error)) from None
        except MemoryError as error:
            raise _no_memory(f"slice {entry.name!r}", error) from None

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights held now."""
        return int(self._shard.weight_bytes)

    @property
    def disk_bytes(self) -> int:
        """Bytes of these that take no memory: they lie on disk."""
        return int(self._shard.disk_bytes)

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV cache held now; grows with the pages in use."""
        return int(self._shard.kv_bytes)

    @property
    def kv_pages(self) -> int:
        """KV pages allocated now."""
        return int(self._shard.kv_pages)

    def release_pages(self, first: int) -> None:
        """Gives the memory of KV pages from `first` on back; their content is lost."""
        self._shard.release_pages(first)

    def restore(self, snapshot: int, slot: int, position: int) -> None:
        """Lets a sequence's slot begin from a snapshot of the state after `position` positions."""
        self._copy_state(self._snapshot_slot(snapshot), slot, position)

    def save(self, slot: int, snapshot: int, position: int) -> None:
        """Copies a sequence's state after `position` positions to a snapshot."""
        self._copy_state(slot, self._snapshot_slot(snapshot), position)

    @property
    def page_bytes(self) -> int:
        """Bytes of one KV page on this node."""
        return int(self._shard.page_bytes)

    @property
    def state_bytes(self) -> int:
        """Bytes of one sequence's recurrent state on this node; 0 where there is none."""
        return int(self._shard.state_bytes)

    def read_page(self, page: int) -> npt.NDArray[np.uint8]:
        """The content of a KV page: u8 [page_bytes]. Raises HearthError BAD_STEP."""
        try:
            return self._shard.read_page(page)
        except ValueError as error:
            raise HearthError(Reason.BAD_STEP, f"invalid page to store: {error}") from None
        except _native.DeviceError as error:
            raise self._failed_device(error) from None

    def write_page(self, page: int, data: Buffer) -> None:
        """Replaces the content of a KV page. Raises HearthError BAD_STEP."""
        try:
            self._shard.write_page(page, data)
        except ValueError as error:
            raise HearthError(Reason.BAD_STEP, f"invalid page to fetch: {error}") from None
        except _native.DeviceError as error:
            raise self._failed_device(error) from None
        except MemoryError as error:
            raise _no_memory("pages of KV cache", error) from None

    def read_snapshot(self, snapshot: int, position: int) -> npt.NDArray[np.uint8]:
        """A snapshot of the state after `position` positions: u8 [state_bytes].

        Raises HearthError BAD_STEP.
        """
        try:
            return self._shard.read_state(self._snapshot_slot(snapshot), position)
        except ValueError as error:
            raise HearthError(Reason.BAD_STEP, f"invalid snapshot to store: {error}") from None

    def write_snapshot(self, snapshot: int, position: int, data: Buffer) -> None:
        """Replaces a snapshot. Raises HearthError BAD_STEP."""
        try:
            self._shard.write_state(self._snapshot_slot(snapshot), position, data)
        except ValueError as error:
            raise HearthError(Reason.BAD_STEP, f"invalid snapshot to fetch: {error}") from None
        except MemoryError as error:
            raise _no_memory("a state", error) from None

    def _failed_device(self, error: Exception) -> HearthError:
        """A GPU that is lost, hangs, or has no memory left; or the disk of weights."""
        self.failed = True
        return HearthError(Reason.WORKER_UNFIT, self._at_fault(error))

    def _at_fault(self, error: Exception) -> str:
        return str(error) if self.device == devices.CPU else f"--device {self.device}: {error}"

    def _copy_state(self, source: int, target: int, position: int) -> None:
        try:
            self._shard.copy_state(source, target, position)
        except ValueError as error:
            raise HearthError(Reason.BAD_STEP, f"invalid step: {error}") from None
        except MemoryError as error:
            raise _no_memory("a state", error) from None

    def _snapshot_slot(self, number: int) -> int:
        """The slot of a snapshot: the last one is number 0. Raises HearthError BAD_STEP."""
        most = most_sequences(self.config)
        if number >= most:
            raise HearthError(Reason.BAD_STEP, f"snapshot {number} of a plan with {most} states")
        return most - 1 - number

    def embed(self, tokens: npt.NDArray[np.uint32], positions: npt.NDArray[np.uint32]) -> F32:
        """float32 [len(tokens), row_size]; the node must hold the embedding.

        positions: of the tokens; read only if the model has learned positions, else may be empty.
        """
        try:
            return self._shard.embed(tokens, positions)
        except ValueError as error:
            raise HearthError(Reason.BAD_STEP, str(error)) from None

    def final_norm(self, rows: F32) -> F32:
        """Activations of the last stage after the norm before the head: f32 [rows, hidden_size].

        The node must hold a part of the head.
        """
        # Behind the residual stream are the layers' own inputs, where there are any.
        return self._shard.final_norm(rows[:, : self.config.hidden_size])

    def step(
        self,
        activations: F32,
        sequences: Sequence[Span],
        output_rows: Sequence[int],
        lane: _native.Lane | None,
        slots: Sequence[int] = (),
        undo: Sequence[int] = (),
    ) -> _native.StepOutput:
        """One forward pass: activations f32 [rows, row_size], the rows of `sequences` in order.

        `output_rows` are the rows whose logits are returned. `slots` hold the sequences' states,
        where a mixer is recurrent, and `undo` how far each may go back in its next step. Exceptions
        of the lane pass through.
        """
        try:
            return self._shard.step(
                activations, list(sequences), list(output_rows), lane, slots, undo
            )
        except ValueError as error:
            raise HearthError(Reason.BAD_STEP, f"invalid step: {error}") from None
        except _native.DeviceError as error:
            raise self._failed_device(error) from None
        except MemoryError as error:
            raise _no_memory("pages of KV cache", error) from None


def page_tables(config: common_pb2.ShardConfig) -> PageTables:
    """Empty page tables for steps of a shard."""
    return PageTables(most_sequences(config), config.max_pages, config.page_size)


def check_disk(config: common_pb2.ShardConfig, device: str, folder: Path | None) -> None:
    """Raises HearthError BAD_SHARD where weights cannot lie on disk."""
    begin, end = config.layers.begin, config.layers.end
    if not all(begin <= layer < end for layer in config.disk_layers):
        raise _bad(f"layers on disk that are not among {begin} to {end - 1}")
    if device != devices.CPU:
        raise _bad(f"weights on disk are for nodes that compute on the CPU, not on {device}")
    if folder is None:
        raise _bad("weights on disk need a --cache-dir on every node")
    folder.mkdir(parents=True, exist_ok=True)


def check_free(folder: Path, size_bytes: int, whose: str) -> None:
    """Raises HearthError OUT_OF_MEMORY where the folder's disk has no room for weights.

    size_bytes: of the layers that do not fit memory; whose: "this worker's".
    """
    if not size_bytes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        problem = (
            f"the disk of {folder} has {format_size(free)} left, and the layers that do not fit "
            f"{whose} memory need {format_size(size_bytes)}"
        )
        raise HearthError(Reason.OUT_OF_MEMORY, problem)


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
        if entry.parts > 1 and entry.rows % entry.parts:
            raise _bad(f"slice {entry.name!r}: {entry.rows} rows are not {entry.parts} equal parts")
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


def _weight_name(entry: worker_pb2.SliceEntry) -> str:
    """ "f32", "q40" ... Raises HearthError BAD_SHARD."""
    name = name_of(WEIGHT, entry.type)
    if name is None:
        raise _bad(f"slice {entry.name!r} has unknown type {entry.type}")
    return name


def _bad(problem: str) -> HearthError:
    return HearthError(Reason.BAD_SHARD, problem)


def _no_memory(what: str, error: MemoryError) -> HearthError:
    problem = f"no memory for {what} ({error}); use more nodes, smaller weights or less context"
    return HearthError(Reason.OUT_OF_MEMORY, problem)
