"""Writes slices of a plan into a folder, as a worker's cache has them: for a USB stick."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from hearth.common.channels import CHUNK_BYTES
from hearth.common.errors import HearthError, Reason
from hearth.converter import Model
from hearth.root.planning.plan import NodePlan, Slice
from hearth.worker.cache import Part, SliceCache

# Called with the bytes of each slice that is there: written now, or before.
Progress = Callable[[int], object]


def write_slices(
    model: Model, nodes: Sequence[NodePlan], folder: Path, on_progress: Progress = lambda _: None
) -> tuple[int, int]:
    """Writes the slices of these nodes that the folder lacks; (slices written, bytes written).

    Nodes that share a slice share its file. Raises HearthError OUT_OF_MEMORY for a full disk,
    BAD_SETTING for a folder that cannot be used, ModelError for files that cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cache = SliceCache(folder)
    try:
        model.identify()
        written = size = 0
        for part in (part for node in nodes for part in node.slices):
            identity = part.identity(model.identity(part.tensor))
            if not (folder / f"{identity.hex()}.slice").is_file():
                _write(model, part, identity, cache)
                written, size = written + 1, size + part.size_bytes
            on_progress(part.size_bytes)
        model.check_unchanged()
    finally:
        cache.close()
    return written, size


def _write(model: Model, part: Slice, identity: bytes, cache: SliceCache) -> None:
    file = cache.part(identity, part.size_bytes)
    if file is None:
        raise _full(part, cache.folder)
    try:
        _fill(model, part, file)
    except OSError as error:
        raise _full(part, cache.folder, f": {error.strerror or error}") from None
    finally:
        file.close()


def _fill(model: Model, part: Slice, file: Part) -> None:
    digest = xxhash.xxh3_128()
    rows = part.shape[0]
    step = max(1, CHUNK_BYTES * rows // max(1, part.size_bytes))
    if part.vector:
        step = rows
    offset = 0
    for first in range(0, rows, step):
        data = _read(model, part, first, min(rows, first + step)).tobytes()
        file.write(offset, data)
        digest.update(data)
        offset += len(data)
    file.finish(digest.digest())


def _read(model: Model, part: Slice, first: int, last: int) -> npt.NDArray[np.uint8]:
    pieces = [model.read(part.tensor, part.kind, *piece) for piece in part.pieces(first, last)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, int(part.vector))


def _full(part: Slice, folder: Path, why: str = "") -> HearthError:
    problem = f"{part.name}: {part.size_bytes} bytes do not fit on the disk of {folder}{why}"
    return HearthError(Reason.OUT_OF_MEMORY, problem)
