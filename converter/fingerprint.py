"""Identities: 16 bytes that are equal for equal content.

A tensor's identity is a digest of its bytes in the file: xxh3_128, which runs at the speed of
memory, on a Raspberry Pi too. It tells apart whatever is not made to collide on purpose; model
files are trusted as programs are. Digests of a file are computed once and kept in a sidecar, a file
of this user's cache. They are used again while inode, size, mtime and ctime of the file agree.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xxhash

from hearth.converter.errors import ModelError
from hearth.converter.files import FileState, OpenFile
from hearth.converter.sidecars import Range, load_digests, store_digests

log = logging.getLogger(__name__)

_BLOCK_BYTES = 2 << 20
_MOST_THREADS = 4
# A larger reading is worth a line in the log.
_WORTH_A_LINE = 1 << 30


def fingerprint(parts: Iterable[bytes | str | int]) -> bytes:
    """16 bytes over the parts; each part's length is hashed too, so no two lists collide."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


class Digests:
    """Digests of ranges of a model's files. Not thread-safe."""

    def __init__(self, ranges: Mapping[OpenFile, Sequence[Range]]) -> None:
        self._ranges = ranges
        self._found: dict[OpenFile, dict[Range, bytes]] = {file: {} for file in ranges}
        # States in which a file was read and found to have other content.
        self._other: dict[OpenFile, FileState] = {}

    def of(self, file: OpenFile, place: Range) -> bytes:
        """The digest of a range that `compute` has read."""
        return self._found[file][place]

    @property
    def complete(self) -> bool:
        """True once every range has a digest."""
        return all(len(self._found[file]) == len(set(r)) for file, r in self._ranges.items())

    def compute(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Find every digest, in a sidecar or by reading; False if `stop` ended it.

        Raises ModelError: a file cannot be read, or has changed since it was opened.
        """
        if self.complete:
            return True
        began = time.time_ns()
        missing: dict[OpenFile, list[Range]] = {}
        for file, ranges in self._ranges.items():
            known = self._found[file]
            if not known:
                known.update(load_digests(file, ranges))
            left = [place for place in ranges if place not in known]
            if left:
                missing[file] = left
        done = self._read(missing, stop)
        for file, ranges in missing.items():
            self._found[file].update({r: done[file, r] for r in ranges if (file, r) in done})
            if len(self._found[file]) == len(set(self._ranges[file])):
                store_digests(file, self._found[file], began)
        return self.complete

    def check(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Find whether the files are as they were, by their state, else by content.

        False if `stop` ended it. Raises FileChangedError.
        """
        for file, ranges in self._ranges.items():
            try:
                now = file.current()
            except OSError as error:
                raise ModelError(f"cannot read {file.path}: {error.strerror or error}") from error
            if now == file.state:
                continue
            known = self._found[file]
            if self._other.get(file) == now or now.size != file.state.size or not known:
                raise file.changed(now)
            before, file.state = file.state, now
            try:
                read = self._read({file: list(ranges)}, stop)
            except ModelError:
                file.state = before
                raise
            if len(read) < len(set(ranges)):
                file.state = before
                return False
            if any(read[file, place] != known.get(place) for place in ranges):
                file.state = before
                self._other[file] = now
                raise file.changed(now)
            log.info("%s was touched, but its weights are the same", file.path)
        return True

    def _read(
        self, wanted: dict[OpenFile, list[Range]], stop: Callable[[], bool]
    ) -> dict[tuple[OpenFile, Range], bytes]:
        """Digests by reading, several files or ranges at once; fewer if `stop` ended it."""
        jobs = [(file, place) for file, ranges in wanted.items() for place in sorted(set(ranges))]
        total = sum(size for _, (_, size) in jobs)
        if total >= _WORTH_A_LINE:
            log.info(
                "reading %.1f GiB of weights once, to know them by their content (%s)",
                total / (1 << 30),
                ", ".join(sorted({file.path.name for file, _ in jobs})[:4]),
            )
        found: dict[tuple[OpenFile, Range], bytes] = {}
        threads = max(1, min(_MOST_THREADS, os.cpu_count() or 1, len(jobs)))
        left = iter(jobs)

        def work() -> None:
            buffer = np.empty(_BLOCK_BYTES, dtype=np.uint8)
            for job in left:  # a list's iterator deals each item to one thread
                digest = _digest(*job, buffer, stop)
                if digest is None:
                    return
                found[job] = digest

        with ThreadPoolExecutor(threads, "digest") as pool:
            workers = [pool.submit(work) for _ in range(threads)]
        for worker in workers:
            worker.result()
        return found


def _digest(
    file: OpenFile, place: Range, buffer: np.ndarray, stop: Callable[[], bool]
) -> bytes | None:
    hasher = xxhash.xxh3_128()
    offset, size = place
    for begin in range(0, size, buffer.size):
        if stop():
            return None
        view = buffer[: min(buffer.size, size - begin)]
        file.read_into(view, offset + begin)
        hasher.update(view.data)
    return hasher.digest()
