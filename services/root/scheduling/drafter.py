"""The interface of a source of drafts that takes time, such as a small model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hearth.root.scheduling.sequence import Sequence as Running


@dataclass(frozen=True, slots=True)
class Draft:
    """A token that may come next, and the probability that the drafter gives it."""

    token: int
    confidence: float


class Drafter(Protocol):
    """Guesses the next tokens of sequences, and takes time for it. It never raises."""

    def guess(
        self, asked: Sequence[tuple[Running, Sequence[int]]]
    ) -> tuple[list[Draft | None], float]:
        """The next token of each sequence after its known tokens and these drafts; the seconds.

        None for a sequence whose tokens it has not read to their end, and for one that it cannot
        guess. Each call reads a limited number of tokens.
        """

    def forget(self, seq_id: int) -> None:
        """The sequence has ended."""
