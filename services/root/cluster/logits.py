"""Logits of all ranks, checked and joined."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common.allowed import LOWEST, among
from hearth.common.candidates import WHOLE_ROWS, Candidates, Part, Tails, find
from hearth.root.cluster.links import WorkerLink, violation
from hearth.v1 import worker_pb2


def own_logits(whole: npt.NDArray[np.float32], candidates: Candidates = WHOLE_ROWS) -> Part:
    """The root's logits; its vocabulary rows begin at 0."""
    return find(whole, candidates, 0) if candidates.count else Part(whole)


def logits(
    result: worker_pb2.StepResult,
    link: WorkerLink,
    rows: int,
    vocab: tuple[int, int],
    candidates: Candidates = WHOLE_ROWS,
) -> Part:
    """A worker's logits.

    Raises HearthError WORKER_UNFIT for a wrong shape, token ids or counts.
    """
    count = candidates.count
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
        return Part(values)
    ids = np.frombuffer(id_bytes, "<u4").reshape(rows, columns)
    if rows and not (vocab[0] <= int(ids.min()) and int(ids.max()) < vocab[1]):
        raise violation(link, f"token ids outside its vocabulary rows {vocab[0]} to {vocab[1]}")
    for row, mask in candidates.allowed.items():
        if (values[row][~among(ids[row], mask)] > LOWEST).any():
            raise violation(link, "candidates that are not among the allowed tokens")
    nuclei = candidates.nuclei
    count_bytes = result.logit_counts
    if len(count_bytes) != len(nuclei) * _native.LOGIT_STEPS * 4:
        problem = (
            f"{len(count_bytes)} bytes of counts, expected those of {len(nuclei)} rows with "
            f"{_native.LOGIT_STEPS} each"
        )
        raise violation(link, problem)
    counts = np.frombuffer(count_bytes, "<u4").reshape(len(nuclei), _native.LOGIT_STEPS)
    if counts.size and int(counts.sum(1, np.uint64).max()) > vocab[1] - vocab[0]:
        raise violation(link, f"counts of more than {vocab[1] - vocab[0]} logits")
    return Part(values, ids, dict(zip(nuclei, counts, strict=True)))


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
        self._counts: dict[int, list[tuple[float, npt.NDArray[np.uint32]]]] = {}

    def add(self, part: Part) -> int:
        """Adds the next rank's part; returns its size in bytes."""
        values, ids, counts = part
        begin, self._filled = self._filled, self._filled + values.shape[1]
        self.values[:, begin : self._filled] = values
        if self.ids is None or ids is None:
            return values.nbytes
        self.ids[:, begin : self._filled] = ids
        for row, counted in counts.items():
            # The best logit comes first.
            self._counts.setdefault(row, []).append((float(values[row, 0]), counted))
        return values.nbytes + ids.nbytes + sum(counted.nbytes for counted in counts.values())

    @property
    def tails(self) -> dict[int, Tails]:
        """Of rows with a nucleus: the best logit of each rank, and its counts."""
        found: dict[int, Tails] = {}
        for row, ranks in self._counts.items():
            bests = np.array([best for best, _ in ranks], np.float32)
            found[row] = bests, np.stack([counts for _, counts in ranks])
        return found


def _columns(vocab: tuple[int, int], candidates: int) -> int:
    """Number of logits per row that a rank returns."""
    size = vocab[1] - vocab[0]
    return min(candidates, size) if candidates else size
