"""Sending side of the weight stream: a worker's missing slices, in order, verified on arrival.

Call it in one thread for each worker. A block of a slice's rows is read just before it is sent. At
most one block and a bounded number of chunks are in memory.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import numpy as np
import numpy.typing as npt
import xxhash

from hearth.common.channels import CHUNK_BYTES
from hearth.common.errors import HearthError, Reason
from hearth.common.frames import ChunkFrame, encode_request
from hearth.common.rpc_errors import from_rpc_error
from hearth.v1 import worker_pb2

Bytes = npt.NDArray[np.uint8]
# (index in the manifest, rows [begin, end)) -> bytes of these rows, uint8, C-contiguous.
SliceReader = Callable[[int, int, int], Bytes]

_METHOD = "/hearth.v1.WorkerService/LoadWeights"
Request = worker_pb2.LoadWeightsRequest | ChunkFrame

# A slice is read in blocks of whole rows of about this many bytes.
_BLOCK_BYTES = 2 << 20
# Limit of unacknowledged bytes: enough for a fast network's delay, small for any memory.
WINDOW_BYTES = 8 * CHUNK_BYTES
# A worker has to load this many bytes, or all that is left, in each STALL_SECONDS. Messages alone
# do not count.
_LEAST_BYTES = 1 << 20
STALL_SECONDS = 120.0
# Chunks may be rejected and sent again, but not without end.
_MOST_TIMES = 8


@dataclass(frozen=True)
class LoadEvent:
    """Progress of one node's loading: total bytes so far."""

    total_bytes: int
    network_bytes: int
    cache_bytes: int


def stream_weights(
    channel: grpc.Channel,
    begin: worker_pb2.LoadBegin,
    read_slice: SliceReader,
    on_progress: Callable[[LoadEvent], None] = lambda event: None,
    *,
    worker: str,
    deadline: float | None = None,
    stall_seconds: float = STALL_SECONDS,
    on_start: Callable[[Callable[[], object]], object] = lambda end: None,
) -> worker_pb2.LoadDone:
    """Loads the plan of `begin` into the worker; returns when its shard can step.

    Open Forward within the worker's grace period afterwards, or the lease ends. `on_progress` is
    called in the calling thread. `worker` is the name in messages, `deadline` the limit of the
    whole call in seconds. `on_start` gets a function that ends the stream from any thread.
    Raises HearthError naming the worker, and the errors of `read_slice`.
    """
    sender = _Sender(begin, read_slice, stall_seconds)
    load_weights = channel.stream_stream(
        _METHOD,
        request_serializer=encode_request,
        response_deserializer=worker_pb2.LoadWeightsResponse.FromString,
    )
    call = load_weights(sender.requests(), timeout=deadline)
    sender.cancel = call.cancel
    on_start(call.cancel)
    try:
        for response in call:
            done = sender.receive(response, on_progress)
            if done is not None:
                return done
        problem = "the weight stream ended before the shard was ready"
        raise sender.failure or HearthError(Reason.WORKER_LOST, problem)
    except grpc.RpcError as error:
        failure = sender.failure or from_rpc_error(error)
        raise (_named(failure, worker) if isinstance(failure, HearthError) else failure) from None
    except HearthError as error:
        raise _named(error, worker) from None
    finally:
        sender.close()
        call.cancel()


class _Sender:
    """Shared by two threads: gRPC's iterates over `requests`, the caller's calls `receive`."""

    def __init__(
        self, begin: worker_pb2.LoadBegin, read_slice: SliceReader, stall_seconds: float
    ) -> None:
        self._begin = begin
        self._manifest = list(begin.manifest)
        self._total = sum(entry.size_bytes for entry in self._manifest)
        self._read_slice = read_slice
        self._stall_seconds = stall_seconds
        self._changed = threading.Condition()
        self._closed = False
        # Bytes loaded at the last progress that counts, and when that was.
        self._beat_bytes = 0
        self._beat_at = time.monotonic()
        # The worker's missing slices in order, and the position of the next chunk.
        self._needs: list[worker_pb2.SliceNeed] | None = None
        self._place = 0
        self._offset = 0
        # (slice, end offset, bytes) of unacknowledged chunks.
        self._flying: deque[tuple[int, int, int]] = deque()
        self._flying_bytes = 0
        self._network_bytes = 0
        self._cache_bytes = 0
        self.failure: Exception | None = None
        self.cancel: Callable[[], object] = lambda: None

    def close(self) -> None:
        """Ends `requests`: the call is over."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def requests(self) -> Iterator[Request]:
        """Messages for gRPC to send. An error here ends the call; `receive` raises it."""
        try:
            yield worker_pb2.LoadWeightsRequest(begin=self._begin)
            yield from self._chunks()
        except Exception as failure:
            self.failure = failure
            self.cancel()

    def receive(
        self, response: worker_pb2.LoadWeightsResponse, on_progress: Callable[[LoadEvent], None]
    ) -> worker_pb2.LoadDone | None:
        """Processes one message of the worker; returns it if it is the last one."""
        kind = response.WhichOneof("message")
        with self._changed:
            if kind == "needs":
                self._start(list(response.needs.slices))
            elif kind == "ack":
                self._acknowledged(response.ack)
            elif kind == "reject":
                self._rejected(response.reject)
            elif kind == "progress":
                self._cached(response.progress.cache_bytes)
            elif kind != "done":
                raise _violation(f"it sent a message {kind!r}")
            self._beat()
            self._changed.notify_all()
        if kind == "done":
            return response.done
        on_progress(LoadEvent(self._total, self._network_bytes, self._cache_bytes))
        return None

    def _cached(self, size: int) -> None:
        self._cache_bytes += size
        if self._cache_bytes > self._total:
            problem = f"it read {self._cache_bytes} bytes of {self._total} from its cache"
            raise _violation(problem)

    def _beat(self) -> None:
        """Notes the time, if enough was loaded since the last such time."""
        loaded = self._cache_bytes + self._network_bytes
        least = min(_LEAST_BYTES, max(1, self._total - self._beat_bytes))
        if loaded >= self._beat_bytes + least:
            self._beat_bytes, self._beat_at = loaded, time.monotonic()

    def _start(self, needs: list[worker_pb2.SliceNeed]) -> None:
        lacking = 0
        for need in needs:
            size = self._size(need.slice)
            if need.offset >= max(size, 1):
                raise _violation(f"it needs slice {need.slice} from byte {need.offset} of {size}")
            lacking += size - need.offset
        if self._needs is not None or len({need.slice for need in needs}) != len(needs):
            raise _violation("it sent its list of missing slices twice")
        self._needs = needs
        self._offset = needs[0].offset if needs else 0
        self._cache_bytes = self._total - lacking
        # Its list is progress, once. What it reads from the cache is counted before.
        self._beat_bytes, self._beat_at = self._cache_bytes, time.monotonic()

    def _acknowledged(self, ack: worker_pb2.ChunkAck) -> None:
        """Processes an ack, which covers all chunks up to the one it names."""
        if not any((index, end) == (ack.slice, ack.held_bytes) for index, end, _ in self._flying):
            return
        while True:
            index, end, size = self._flying.popleft()
            self._flying_bytes -= size
            self._network_bytes += size
            if self._network_bytes > _MOST_TIMES * self._total:
                raise _violation(f"it rejected what it had, {self._network_bytes} bytes so far")
            if (index, end) == (ack.slice, ack.held_bytes):
                return

    def _rejected(self, reject: worker_pb2.ChunkReject) -> None:
        """Returns to the rejected chunk; the worker drops chunks already sent after it."""
        for place, need in enumerate(self._needs or ()):
            if need.slice == reject.slice and reject.offset < self._size(need.slice):
                self._place, self._offset = place, reject.offset
                self._flying.clear()
                self._flying_bytes = 0
                return
        raise _violation(f"it rejected slice {reject.slice} at {reject.offset}, which was not sent")

    def _chunks(self) -> Iterator[Request]:
        source: _Source | None = None
        while True:
            with self._changed:
                self._wait(lambda: self._may_send() or self._all_acknowledged())
                if self._closed:
                    return
                index, offset = self._next()
            if index < 0:
                break
            if source is None or source.index != index:
                source = None
                source = _Source(index, self._manifest[index], self._read_slice)
            began = time.monotonic()
            chunk = source.chunk(offset)
            with self._changed:
                self._beat_at += time.monotonic() - began  # the root's time, not the worker's
                if (index, offset) != self._next():
                    continue  # rejected meanwhile: send that chunk again
                self._advance(index, chunk.data.nbytes)
            yield chunk
        yield worker_pb2.LoadWeightsRequest(finish=worker_pb2.LoadFinish())
        with self._changed:
            self._wait(lambda: False)  # watches for a stall until the call is over

    def _next(self) -> tuple[int, int]:
        if not self._needs or self._place >= len(self._needs):
            return -1, 0
        return self._needs[self._place].slice, self._offset

    def _advance(self, index: int, size: int) -> None:
        self._offset += size
        self._flying.append((index, self._offset, size))
        self._flying_bytes += size
        if self._needs and self._offset == self._size(index):
            self._place += 1
            self._offset = self._needs[self._place].offset if self._place < len(self._needs) else 0

    def _may_send(self) -> bool:
        return self._next()[0] >= 0 and self._flying_bytes < WINDOW_BYTES

    def _all_acknowledged(self) -> bool:
        return self._needs is not None and self._next()[0] < 0 and not self._flying

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Waits until `ready` or closed. Raises HearthError WORKER_UNFIT for no progress."""
        while not (self._closed or ready()):
            left = self._beat_at + self._stall_seconds - time.monotonic()
            if left <= 0:
                loaded = self._cache_bytes + self._network_bytes
                problem = (
                    f"it made no progress for {self._stall_seconds:g} s while loading weights, at "
                    f"{loaded} of {self._total} bytes (--stall-seconds); check the worker's log, "
                    "its disk and the network"
                )
                raise HearthError(Reason.WORKER_UNFIT, problem)
            self._changed.wait(left)

    def _size(self, index: int) -> int:
        if index >= len(self._manifest):
            raise _violation(f"it named slice {index} of {len(self._manifest)}")
        return self._manifest[index].size_bytes


class _Source:
    """One slice as chunks, read one block of rows at a time."""

    def __init__(self, index: int, entry: worker_pb2.SliceEntry, read: SliceReader) -> None:
        self.index = index
        self._entry = entry
        self._read = read
        self._row_bytes = entry.size_bytes // entry.rows
        self._block_bytes = max(1, _BLOCK_BYTES // self._row_bytes) * self._row_bytes
        self._begin = 0
        self._block = np.empty(0, dtype=np.uint8)
        # Digest of the first `_hashed` bytes; each is hashed once, when sent.
        self._hasher = xxhash.xxh3_128()
        self._hashed = 0

    def chunk(self, offset: int) -> ChunkFrame:
        """The chunk at `offset`. Raises HearthError, and the errors of reading."""
        if offset == 0:  # the first time, or again after a wrong digest
            self._hasher.reset()
            self._hashed = 0
        while self._hashed < offset:  # bytes the worker has from an earlier stream
            before = self._bytes(self._hashed)[: offset - self._hashed]
            self._hash(before, self._hashed)
        data = self._bytes(offset)[:CHUNK_BYTES]
        self._hash(data, offset)
        last = offset + data.size == self._entry.size_bytes
        digest = self._hasher.digest() if last else b""
        checksum = xxhash.xxh3_64_intdigest(data.data)
        return ChunkFrame(self.index, offset, data.data, checksum, digest)

    def _hash(self, data: Bytes, offset: int) -> None:
        fresh = data[self._hashed - offset :]
        self._hasher.update(fresh.data)
        self._hashed += fresh.size

    def _bytes(self, offset: int) -> Bytes:
        """Bytes from `offset` to the end of its block."""
        if not self._begin <= offset < self._begin + self._block.size:
            begin = offset // self._block_bytes * self._block_bytes
            end = min(begin + self._block_bytes, self._entry.size_bytes)
            self._block = np.empty(0, dtype=np.uint8)  # freed before the next is read
            self._block = self._rows(begin // self._row_bytes, end // self._row_bytes)
            self._begin = begin
        return self._block[offset - self._begin :]

    def _rows(self, begin: int, end: int) -> Bytes:
        data = self._read(self.index, begin, end).reshape(-1)
        if data.dtype != np.uint8 or data.size != (end - begin) * self._row_bytes:
            raise HearthError(
                Reason.BAD_SHARD,
                f"reading rows {begin} to {end} of slice {self._entry.name!r} gave {data.size} "
                f"{data.dtype}, expected {(end - begin) * self._row_bytes} bytes",
            )
        return data


def _violation(problem: str) -> HearthError:
    return HearthError(Reason.WORKER_UNFIT, f"it violated the protocol: {problem}")


def _named(error: HearthError, worker: str) -> HearthError:
    metadata = {"peer": f"worker {worker}", **error.metadata}
    return HearthError(error.reason, f"worker {worker}: {error.message}", metadata, error.code)
