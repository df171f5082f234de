"""The receiving side of the weight stream: from a manifest to a shard that can step.

Independent of gRPC. One LoadSession lives as long as its plan: if a stream breaks, the next one of
the same lease continues where it stopped. Chunks come strictly in order; after a rejected chunk all
others are dropped until the rejected one is sent again.

Chunks are packed one block of rows at a time (packing.py): no slice is ever in memory whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import xxhash

from hearth.common import system
from hearth.common.channels import CHUNK_BYTES
from hearth.common.errors import HearthError, Reason
from hearth.common.frames import ChunkFrame
from hearth.common.metrics import WorkerMetrics
from hearth.common.sizes import format_size
from hearth.common.types import DISK_SEATS
from hearth.v1 import worker_pb2
from hearth.worker.cache import SliceCache
from hearth.worker.packing import Assembly, ShardFiller
from hearth.worker.shape import check_config, kv_bytes, state_bytes
from hearth.worker.shard import (
    NodeShard,
    check_free,
    check_manifest,
    slice_bytes,
)

log = logging.getLogger(__name__)

# Loading fails when a chunk is still wrong after this many resends.
MAX_RESENDS = 3
# Bytes stored between two acks: at most half the sender's window (streaming.py).
_ACK_BYTES = 4 * CHUNK_BYTES
# Bytes read from the cache between two LoadProgress messages.
_PROGRESS_BYTES = 32 << 20


class LoadSession:
    """Builds the shard of one plan. Used by one stream at a time; not thread-safe."""

    def __init__(
        self,
        begin: worker_pb2.LoadBegin,
        cache: SliceCache | None,
        metrics: WorkerMetrics,
        memory_limit: Callable[[], int],
        threads: int = 1,
        pin: Sequence[int] = (),
        device: str = "cpu",
        folder: Path | None = None,
    ) -> None:
        """folder: of weights on disk.

        Raises HearthError BAD_SHARD or OUT_OF_MEMORY, before any weights are transferred.
        """
        self.begin = begin
        self.manifest = list(begin.manifest)
        self._cache = cache
        self._metrics = metrics
        # Checked before anything of the manifest's sizes is allocated.
        check_config(begin.shard)
        self.weight_bytes = sum(slice_bytes(entry) for entry in self.manifest)
        # What lies on disk takes none, but for the layers that take turns.
        self._disk_bytes, largest = disk_sizes(begin)
        if folder is not None:
            check_free(folder, self._disk_bytes, "this worker's")
        self._check_memory(
            memory_limit(), self.weight_bytes - self._disk_bytes + DISK_SEATS * largest
        )
        self.shard = NodeShard(begin.shard, threads, pin, device, folder)
        check_manifest(self.manifest, self.shard.expected())
        if cache is not None:
            cache.pin(entry.identity for entry in self.manifest)
        self._loaded = [False] * len(self.manifest)
        self._cache_read = False
        self._assembly: Assembly | None = None
        self._pending: list[int] = []
        self._network_bytes = 0
        self._filler = ShardFiller(self.shard, self.manifest)
        self._unacknowledged = 0
        # Epoch of the last plan that wrote to the KV cache; 0 for none.
        self.pages_epoch = 0

    @property
    def sound(self) -> bool:
        """True if another plan may go on with the shard."""
        return self.complete and not self.shard.failed

    @property
    def held_bytes(self) -> int:
        """Bytes of weights and KV cache held now."""
        return self.shard.weight_bytes - self.shard.disk_bytes + self.shard.kv_bytes

    @property
    def complete(self) -> bool:
        """True when every slice is loaded and packed."""
        return all(self._loaded) and self._filler.idle

    def matches(self, begin: worker_pb2.LoadBegin) -> bool:
        """True if `begin` describes the shard that this session builds."""
        return begin.shard == self.begin.shard and begin.manifest == self.begin.manifest

    def read_cache(self) -> Iterator[worker_pb2.LoadWeightsResponse]:
        """Loads cached slices and yields progress, once in a plan: in its first stream."""
        if self._cache is None or self._cache_read:
            return
        since = 0
        for index, entry in enumerate(self.manifest):
            assembly = Assembly(self._filler, index, entry)
            if not self._cache.read(entry.identity, entry.size_bytes, assembly):
                continue
            assembly.finish()
            self._loaded[index] = True
            self._metrics.weights("cache", entry.size_bytes)
            since += entry.size_bytes
            if since >= _PROGRESS_BYTES:
                yield _progress(since)
                since = 0
        self._cache_read = True
        self._filler.finish()
        if since:
            yield _progress(since)

    def needs(self) -> worker_pb2.LoadWeightsResponse:
        """The missing slices, in the order in which they must be sent.

        Called at the start of each stream: resets its counts.
        """
        self._network_bytes = 0
        self._unacknowledged = 0
        self._pending = [index for index, loaded in enumerate(self._loaded) if not loaded]
        if self._assembly is None:
            self._resume_part()
        if self._assembly is not None:
            self._assembly.rejecting = False
            self._pending.remove(self._assembly.index)
            self._pending.insert(0, self._assembly.index)
        needs = worker_pb2.LoadNeeds()
        for index in self._pending:
            current = self._assembly if self._assembly and self._assembly.index == index else None
            needs.slices.add(slice=index, offset=current.held if current else 0)
        return worker_pb2.LoadWeightsResponse(needs=needs)

    def accept(self, chunk: ChunkFrame) -> worker_pb2.LoadWeightsResponse | None:
        """Verifies and stores one chunk; returns an ack, a reject, or None.

        An ack covers all chunks before it. None if a later ack will cover this chunk, or if it was
        already under way when another was rejected. Raises HearthError: BAD_CHUNK for a chunk that
        stays wrong, INVALID_ARGUMENT for one out of order.
        """
        if not self._pending:
            raise _out_of_order("received a chunk, but no slice is missing")
        if self._assembly is None:
            self._assembly = self._open(self._pending[0])
        assembly = self._assembly
        if (chunk.slice, chunk.offset) != (assembly.index, assembly.held):
            if assembly.rejecting:
                return None
            raise _out_of_order(
                f"received a chunk of slice {chunk.slice} at {chunk.offset}, expected slice "
                f"{assembly.index} at {assembly.held}"
            )
        assembly.rejecting = False
        data = chunk.data
        end = assembly.held + len(data)
        size = assembly.entry.size_bytes
        if not 0 < len(data) <= CHUNK_BYTES or end > size:
            raise _out_of_order(
                f"a chunk of {len(data)} bytes at {chunk.offset} does not fit slice "
                f"{assembly.entry.name!r} of {size} bytes, or the limit of {CHUNK_BYTES} a chunk"
            )
        self._network_bytes += len(data)
        if xxhash.xxh3_64_intdigest(data) != chunk.checksum:
            assembly.wrong_chunks += 1
            return self._reject(assembly, "checksum", assembly.wrong_chunks)
        assembly.add(data)
        if end == size:
            if assembly.digest() != chunk.digest:
                assembly.restart()
                assembly.wrong_digests += 1
                return self._reject(assembly, "digest", assembly.wrong_digests)
            self._complete(assembly)
        assembly.wrong_chunks = 0
        self._unacknowledged += len(data)
        if self._pending and self._unacknowledged < _ACK_BYTES:
            return None
        self._unacknowledged = 0
        ack = worker_pb2.ChunkAck(slice=chunk.slice, held_bytes=end)
        return worker_pb2.LoadWeightsResponse(ack=ack)

    def finish(self) -> worker_pb2.LoadWeightsResponse:
        """The reply to LoadFinish. Raises HearthError INVALID_ARGUMENT if slices are missing."""
        missing = [self.manifest[i].name for i, done in enumerate(self._loaded) if not done]
        if missing:
            raise _out_of_order(
                f"received finish, but {len(missing)} slices are missing, the first {missing[0]!r}"
            )
        self._filler.finish()
        self._filler.close()
        system.trim_memory()
        done = worker_pb2.LoadDone(
            network_bytes=self._network_bytes,
            cache_bytes=max(0, self.weight_bytes - self._network_bytes),
            resident_bytes=system.resident_bytes(),
            pages_epoch=self.pages_epoch,
        )
        return worker_pb2.LoadWeightsResponse(done=done)

    def close(self) -> None:
        """Frees the shard: the plan has ended. A part on disk stays for a later plan."""
        self._filler.close()
        self.shard.close()
        if self._assembly is not None and self._assembly.part is not None:
            self._assembly.part.close()
        self._assembly = None

    def _resume_part(self) -> None:
        """Continues a slice that an earlier plan or process left unfinished on disk, if any."""
        if self._cache is None:
            return
        for index in self._pending:
            if self._cache.has_part(self.manifest[index].identity):
                self._assembly = self._open(index)
                self._assembly.resume()
                return

    def _open(self, index: int) -> Assembly:
        entry = self.manifest[index]
        part = self._cache.part(entry.identity, entry.size_bytes) if self._cache else None
        return Assembly(self._filler, index, entry, part)

    def _reject(self, assembly: Assembly, why: str, times: int) -> worker_pb2.LoadWeightsResponse:
        name, offset = assembly.entry.name, assembly.held
        if times > MAX_RESENDS:
            raise HearthError(
                Reason.BAD_CHUNK,
                f"slice {name!r} at byte {offset}: wrong {why} {times} times; check the "
                "network and the memory of both machines",
                {"slice": name, "offset": offset, "times": times},
            )
        log.warning("slice %s at byte %d: wrong %s, requesting it again", name, offset, why)
        assembly.rejecting = True
        reject = worker_pb2.ChunkReject(slice=assembly.index, offset=offset, reason=why)
        return worker_pb2.LoadWeightsResponse(reject=reject)

    def _complete(self, assembly: Assembly) -> None:
        assembly.finish()
        self._loaded[assembly.index] = True
        self._metrics.weights("network", assembly.entry.size_bytes - assembly.resumed)
        self._metrics.weights("cache", assembly.resumed)
        self._metrics.traffic(0, assembly.entry.size_bytes - assembly.resumed)
        self._pending.pop(0)
        self._assembly = None

    def _check_memory(self, limit: int, weights: int) -> None:
        cache = kv_bytes(self.begin.shard) + state_bytes(self.begin.shard)
        if weights + cache > limit:
            raise HearthError(
                Reason.OUT_OF_MEMORY,
                f"out of memory: the shard needs {format_size(weights)} of weights and "
                f"up to {format_size(cache)} of KV cache, this worker has {format_size(limit)}; "
                "use more nodes, smaller --weights, a smaller share, or less --context",
                {"neededBytes": weights + cache, "availableBytes": limit},
            )


def disk_sizes(begin: worker_pb2.LoadBegin) -> tuple[int, int]:
    """Bytes of the weights on disk, and of the largest layer among them."""
    wanted = set(begin.shard.disk_layers)
    sizes = dict.fromkeys(wanted, 0)
    for entry in begin.manifest:
        kind, _, rest = entry.name.partition(".")
        number = rest.partition(".")[0]
        if kind == "layers" and number.isdecimal() and int(number) in wanted and entry.rows > 1:
            sizes[int(number)] += slice_bytes(entry)
    return sum(sizes.values()), max(sizes.values(), default=0)


def _progress(cache_bytes: int) -> worker_pb2.LoadWeightsResponse:
    progress = worker_pb2.LoadProgress(cache_bytes=cache_bytes)
    return worker_pb2.LoadWeightsResponse(progress=progress)


def _out_of_order(problem: str) -> HearthError:
    return HearthError(Reason.INVALID_ARGUMENT, f"weight stream: {problem}")
