"""Fills a shard with slices, one block of rows at a time: no slice is ever in memory whole.

One thread fetches a block from files, the cache or the network while another packs the previous
block. Bytes from the cache or the network pass through an Assembly. It holds back the last block
of a slice until the digest of the whole slice has been verified. So a completely packed slice is
correct, and a wrong one starts again at row 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import xxhash

from hearth.v1 import worker_pb2
from hearth.worker.cache import Part
from hearth.worker.shard import ROW_GROUP, NodeShard

log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]

# Large enough to be read and packed at full speed.
_BLOCK_BYTES = 2 << 20


def block_rows(entry: worker_pb2.SliceEntry) -> int:
    """Rows of a slice that are fetched and packed together: a multiple of the core's row group.

    Of a slice of parts whose rows are not such a multiple: whole parts.
    """
    part = entry.rows // max(1, entry.parts)
    if entry.parts > 1 and part % ROW_GROUP:
        return max(1, _BLOCK_BYTES // (entry.size_bytes // entry.parts)) * part
    group_bytes = entry.size_bytes // entry.rows * ROW_GROUP
    return max(1, _BLOCK_BYTES // group_bytes) * ROW_GROUP


class ShardFiller:
    """Packs blocks of rows into a shard in its own thread, while the next block is fetched.

    The root fills its shard with whole slices by `fill`. A worker writes bytes to `block`, which
    alternates between two buffers: a new one for each block would cost more than its checksum.
    """

    def __init__(self, shard: NodeShard, manifest: Sequence[worker_pb2.SliceEntry]) -> None:
        self._shard = shard
        self._largest = max((_block_bytes(entry) for entry in manifest), default=0)
        self._blocks: list[Bytes] = []
        self._pool = ThreadPoolExecutor(1, "pack")
        self._packing: Future[None] | None = None

    @property
    def idle(self) -> bool:
        """True while no block is being packed."""
        return self._packing is None

    def block(self) -> Bytes:
        """The buffer to fill before `pack`; as large as the largest block of the manifest."""
        if not self._blocks:
            self._blocks = [np.empty(self._largest, dtype=np.uint8) for _ in range(2)]
        return self._blocks[0]

    def pack(self, entry: worker_pb2.SliceEntry, data: Bytes, first_row: int) -> None:
        """Packs rows in the background; `data` may be the first bytes of `block`.

        Raises the error of the previous `pack`, if it failed.
        """
        self.finish()
        self._packing = self._pool.submit(self._shard.load, entry, data, first_row)
        self._blocks.reverse()  # the other buffer is free: its rows are packed

    def fill(self, entry: worker_pb2.SliceEntry, read: Callable[[int, int], Bytes]) -> None:
        """Packs a whole slice; read(begin, end) returns its rows [begin, end) as new bytes.

        At most two blocks are in memory. The last one may still be packing on return: see `finish`.
        """
        step = block_rows(entry)
        for begin in range(0, entry.rows, step):
            self.pack(entry, read(begin, min(begin + step, entry.rows)), begin)

    def finish(self) -> None:
        """Waits for the block being packed, and raises its error, if any."""
        if self._packing is not None:
            self._packing.result()
            self._packing = None

    def close(self) -> None:
        """Ends the thread and frees the buffers; nothing can be packed afterwards."""
        self._pool.shutdown(wait=True)
        self._blocks.clear()


class Assembly:
    """One slice being received: its first `held` bytes have arrived and are in `part`, if any."""

    def __init__(
        self,
        filler: ShardFiller,
        index: int,
        entry: worker_pb2.SliceEntry,
        part: Part | None = None,
    ) -> None:
        """index: position of `entry` in the manifest."""
        self.index = index
        self.entry = entry
        self.part = part
        self.held = 0
        self.resumed = 0
        self.wrong_chunks = 0
        self.wrong_digests = 0
        self.rejecting = False
        self._filler = filler
        self._block_bytes = _block_bytes(entry)
        self._hasher = xxhash.xxh3_128()

    def space(self) -> Bytes:
        """Memory for the next bytes: the rest of a block. Empty when the slice is complete."""
        begin = self._block_begin()
        end = min(begin + self._block_bytes, self.entry.size_bytes)
        return self._filler.block()[self.held - begin : end - begin]

    def filled(self, count: int) -> None:
        """Counts the first `count` bytes of `space` as received."""
        begin = self._block_begin()
        at = self.held - begin
        self._hasher.update(self._filler.block()[at : at + count].data)
        self.held += count
        if self.held - begin == self._block_bytes and self.held < self.entry.size_bytes:
            self._pack(begin, self.held)

    def digest(self) -> bytes:
        """xxh3_128 of the bytes received so far."""
        return self._hasher.digest()

    def add(self, data: memoryview) -> None:
        """Appends bytes, and stores them on disk."""
        if self.part is not None:
            try:
                self.part.write(self.held, data)
            except OSError as error:
                self._give_up_caching(error)
        incoming = np.frombuffer(data, dtype=np.uint8)
        while incoming.size:
            count = min(self.space().size, incoming.size)
            self.space()[:count] = incoming[:count]
            self.filled(count)
            incoming = incoming[count:]

    def resume(self) -> None:
        """Continues from the bytes that an earlier stream left on disk."""
        if self.part is not None and self.part.held:
            try:
                # At least the last byte must come over the wire, because the digest comes with it.
                self.part.read(self, self.entry.size_bytes - 1)
            except OSError as error:
                self._give_up_caching(error)
            self.resumed = self.held

    def restart(self) -> None:
        """Forgets all bytes received."""
        self.held = self.resumed = 0
        self._hasher.reset()
        if self.part is not None:
            try:
                self.part.truncate(0)
            except OSError as error:
                self._give_up_caching(error)

    def finish(self) -> None:
        """Packs the last block, once all bytes are received and verified. Raises HearthError."""
        if self.part is not None:
            try:
                self.part.finish(self.digest())
            except OSError as error:
                self._give_up_caching(error)
        self._pack(self._block_begin(), self.held)

    def _block_begin(self) -> int:
        """Offset in the slice of the block that is being filled."""
        # For a complete slice: the last block, full or not.
        last = min(self.held, self.entry.size_bytes - 1)
        return last // self._block_bytes * self._block_bytes

    def _pack(self, begin: int, end: int) -> None:
        rows = self.entry.rows
        data = self._filler.block()[: end - begin]
        self._filler.pack(self.entry, data, begin * rows // self.entry.size_bytes)

    def _give_up_caching(self, error: OSError) -> None:
        """Continues without a cached copy when the disk is full or broken."""
        log.warning("cache: cannot store slice %s, continuing without: %s", self.entry.name, error)
        if self.part is not None:
            part, self.part = self.part, None
            try:
                part.truncate(0)
                part.close()
            except OSError:
                log.debug("cache: cannot close a part", exc_info=True)


def _block_bytes(entry: worker_pb2.SliceEntry) -> int:
    return entry.size_bytes // entry.rows * block_rows(entry)
