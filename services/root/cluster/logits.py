"""Logits of all ranks, checked and joined."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common.allowed import LOWEST, among, only
from hearth.root.cluster.links import WorkerLink, violation
from hearth.root.engine.interfaces import NO_LIMITS, Allowed
from hearth.v1 import worker_pb2

# Logits of one rank: f32 [rows, n]; for candidates also their u32 token ids, else None.
Logits = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32] | None]


def own_logits(
    whole: npt.NDArray[np.float32], candidates: int, allowed: Allowed = NO_LIMITS
) -> Logits:
    """The root's logits; its vocabulary rows begin at 0."""
    if not candidates:
        return whole, None
    return _native.best(only(whole, allowed, 0), min(candidates, whole.shape[1]), 0)


def logits(
    result: worker_pb2.StepResult,
    link: WorkerLink,
    rows: int,
    vocab: tuple[int, int],
    count: int,
    allowed: Allowed = NO_LIMITS,
) -> Logits:
    """A worker's logits; count: of candidates, 0 for whole rows.

    Raises HearthError WORKER_UNFIT for a wrong shape or token ids.
    """
    columns = _columns(vocab, count)
    size = rows * columns * 4
    # Each access to a field copies it: 4 MiB for 16 whole rows of a large vocabulary.
    logits_bytes, id_bytes = result.logits, result.candidate_ids
    if len(logits_bytes) != size or len(id_bytes) != (size if count else 0):
        problem = (
            f"{len(logits_bytes)} bytes of logits and {len(id_bytes)} of ids, expected {size} for "
            f"[{rows}, {columns}]"
        )
        raise violation(link, problem)
    values = np.frombuffer(logits_bytes, "<f4").reshape(rows, columns)
    if not count:
        return values, None
    ids = np.frombuffer(id_bytes, "<u4").reshape(rows, columns)
    if rows and not (vocab[0] <= int(ids.min()) and int(ids.max()) < vocab[1]):
        raise violation(link, f"token ids outside its vocabulary rows {vocab[0]} to {vocab[1]}")
    for row, mask in allowed.items() if count else ():
        if (values[row][~among(ids[row], mask)] > LOWEST).any():
            raise violation(link, "candidates that are not among the allowed tokens")
    return values, ids


class JoinedLogits:
    """All ranks' logits, side by side. Each part is copied on arrival and can then be freed.

    16 whole rows of a vocabulary of 128,000 are 8 MiB.
    """

    def __init__(self, rows: int, vocabs: Sequence[tuple[int, int]], candidates: int) -> None:
        """vocabs: each rank's rows of the vocabulary."""
        columns = sum(_columns(vocab, candidates) for vocab in vocabs)
        self.values = np.empty((rows, columns), np.float32)
        self.ids = np.empty((rows, columns), np.uint32) if candidates else None
        self._filled = 0

    def add(self, part: Logits) -> int:
        """Adds the next rank's part; returns its size in bytes."""
        values, ids = part
        begin, self._filled = self._filled, self._filled + values.shape[1]
        self.values[:, begin : self._filled] = values
        if self.ids is None or ids is None:
            return values.nbytes
        self.ids[:, begin : self._filled] = ids
        return values.nbytes + ids.nbytes


def _columns(vocab: tuple[int, int], candidates: int) -> int:
    """Number of logits per row that a rank returns."""
    size = vocab[1] - vocab[0]
    return min(candidates, size) if candidates else size
