"""Copies KV pages and snapshots between a shard and this node's disk, between two steps.

Used by the worker, and by the root for its own shard. The bytes of a page are of use only to the
same part of the same model, with the same cut and kernels. The names of the files stand for all of
that, so that a page of another kind is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeAlias

from hearth.common import devices, system
from hearth.common.errors import HearthError, Reason
from hearth.v1 import common_pb2, worker_pb2
from hearth.worker.page_files import NAME_BYTES, PageFiles
from hearth.worker.page_tables import PageTables
from hearth.worker.shard import NodeShard

PENDING = worker_pb2.PAGE_STATE_PENDING
READY = worker_pb2.PAGE_STATE_READY
MISSING = worker_pb2.PAGE_STATE_MISSING

# Items of one message, and the time for which a fetch may wait.
MAX_ITEMS = 64
_MAX_WAIT_SECONDS = 1.0

State: TypeAlias = worker_pb2.PageState.ValueType


class PageMover:
    """Moves the pages of one plan. Used by the thread that runs its steps."""

    def __init__(
        self, shard: NodeShard, tables: PageTables, files: PageFiles | None, context: bytes
    ) -> None:
        """files: None where nothing is kept on disk. context: of all names; see `node_context`."""
        self._shard = shard
        self._tables = tables
        self._files = files
        self._context = context
        self._page_bytes = shard.page_bytes
        self._state_bytes = shard.state_bytes

    def file_name(self, name: bytes) -> bytes:
        """The name of a page's file on this node. Raises HearthError BAD_STEP."""
        if len(name) != NAME_BYTES:
            problem = f"a page's name has {len(name)} bytes, not {NAME_BYTES}"
            raise HearthError(Reason.BAD_STEP, problem)
        return _digest([self._context, name])

    def store(self, items: Sequence[worker_pb2.StoredPage]) -> None:
        """Copies pages, which are written in the background. Raises HearthError BAD_STEP."""
        _check_count(items)
        files = self._files
        if files is None:
            return
        for item in items:
            name = self.file_name(item.name)
            if not files.room() or not self._size(item):
                continue
            if _is_page(item):
                files.store(name, self._shard.read_page(item.page))
            else:
                files.store(name, self._shard.read_snapshot(item.snapshot, item.position))

    def fetch(self, items: Sequence[worker_pb2.StoredPage], seconds: float = 0.0) -> list[State]:
        """Copies the pages that are read, and begins to read the others; the state of each.

        Waits for up to `seconds` while all are pending. Raises HearthError BAD_STEP.
        """
        _check_count(items)
        names = [self.file_name(item.name) for item in items]
        sizes = [self._size(item) for item in items]
        if self._files is None:
            return [MISSING] * len(items)
        self._files.want(
            {name: size for name, size in zip(names, sizes, strict=True) if size},
            min(seconds, _MAX_WAIT_SECONDS) if all(sizes) else 0.0,
        )
        states: list[State] = []
        for item, name, size in zip(items, names, sizes, strict=True):
            if not size:  # this node has no part of it
                states.append(READY)
            else:
                data = self._files.take(name)
                states.append(PENDING if data is None else READY if len(data) else MISSING)
                if states[-1] != READY:
                    continue
                assert data is not None
                if not _is_page(item):
                    self._shard.write_snapshot(item.snapshot, item.position, data)
                else:
                    self._shard.write_page(item.page, data)
            if _is_page(item):
                self._tables.fill(item.page)
        return states

    def _size(self, item: worker_pb2.StoredPage) -> int:
        return self._page_bytes if _is_page(item) else self._state_bytes


def page_context(begin: worker_pb2.LoadBegin, device: str = devices.CPU) -> bytes:
    """The context of a worker's pages: see `node_context`."""
    slices = sorted(begin.manifest, key=lambda entry: entry.name)
    weights = [entry.identity for entry in slices]
    return node_context(begin.shard, begin.placement, weights, device)


def node_context(
    shard: common_pb2.ShardConfig,
    placement: common_pb2.Placement,
    weights: Sequence[bytes],
    device: str = devices.CPU,
) -> bytes:
    """A digest of all on this node that gives the bytes of a page their meaning.

    weights: identities of the node's weights. The plan's limits have no part in it: they change
    with the memory that is free.
    """
    shape = common_pb2.ShardConfig()
    shape.CopyFrom(shard)
    for limit in ("max_pages", "max_step_tokens", "max_sequences"):
        shape.ClearField(limit)
    parts = [
        system.version().encode(),
        devices.kernels(device).encode(),
        system.architecture().encode(),
        shape.SerializeToString(deterministic=True),
        placement.SerializeToString(deterministic=True),
        *weights,
    ]
    return _digest(parts)


def _digest(parts: Sequence[bytes]) -> bytes:
    """NAME_BYTES over parts; the length of each counts, so no two lists are alike."""
    digest = blake2b(digest_size=NAME_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _is_page(item: worker_pb2.StoredPage) -> bool:
    return item.WhichOneof("content") == "page"


def _check_count(items: Sequence[worker_pb2.StoredPage]) -> None:
    if len(items) > MAX_ITEMS:
        problem = f"{len(items)} pages to move at once, at most {MAX_ITEMS} are allowed"
        raise HearthError(Reason.BAD_STEP, problem)
