"""Pooling: one vector of a text from the final hidden states of its positions."""

import numpy as np
import numpy.typing as npt

from hearth.root.engine.interfaces import Logits


class Pooler:
    """Pools the rows of one sequence, which come in steps, in order of their positions.

    A sequence that is computed again begins again at position 0.
    """

    def __init__(self, kind: str) -> None:
        """kind: "mean", "cls" (the first position) or "last"."""
        self._kind = kind
        self._count = 0
        self._sum: npt.NDArray[np.float64] = np.empty(0)

    def add(self, position: int, rows: Logits) -> None:
        """Adds the rows from `position` on, f32 [n, hidden_size]."""
        if position == 0:
            self._count = 0
        if position != self._count:
            raise ValueError(f"rows of position {position} came after {self._count} positions")
        if self._kind == "mean":
            total = rows.sum(axis=0, dtype=np.float64)
            self._sum = total if position == 0 else self._sum + total
        elif self._kind == "last" or position == 0:
            self._sum = rows[-1 if self._kind == "last" else 0].astype(np.float64)
        self._count += len(rows)

    def vector(self) -> Logits:
        """The vector, f32 [hidden_size], of all rows so far."""
        divisor = self._count if self._kind == "mean" else 1
        return (self._sum / divisor).astype(np.float32)
