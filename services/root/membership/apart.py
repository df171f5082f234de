"""Pairs of workers that do not reach each other, though the root reaches both. Pure state.

A connection may break for once; so it takes two times in a row until a pair counts as apart. Of a
pair that is apart one is left out, for a while, then for longer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from hearth.root.membership.candidates import Candidate

_TIMES = 2
_SECONDS = 60.0
_MOST_SECONDS = 600.0
# Two times are in a row where the cluster did not serve for so long in between.
_SOUND_SECONDS = 60.0
# Ways to leave somebody out that are tried.
_MOST_WAYS = 64


@dataclass(slots=True)
class _Trouble:
    times: int = 0
    until: float = 0.0


class Apart:
    """Pairs are of addresses."""

    def __init__(self) -> None:
        self._pairs: dict[frozenset[str], _Trouble] = {}

    def broke(self, one: str, other: str, now: float) -> None:
        """They did not reach each other."""
        trouble = self._pairs.setdefault(frozenset((one, other)), _Trouble())
        trouble.times += 1
        # Who does not reach a third either needs no second proof.
        known = any({one, other} & pair for pair in self._apart(now))
        times = max(trouble.times, _TIMES if known else 0)
        if times >= _TIMES:
            seconds = _SECONDS * 2.0 ** min(times - _TIMES, 10)
            trouble.until = now + min(_MOST_SECONDS, seconds)

    def served(self, workers: Sequence[str], seconds: float) -> None:
        """A cluster of these has served for so long."""
        if seconds >= _SOUND_SECONDS:
            for pair in [pair for pair in self._pairs if pair <= set(workers)]:
                del self._pairs[pair]

    def ways(self, candidates: Sequence[Candidate], now: float) -> Iterator[list[Candidate]]:
        """The candidates without pairs that are apart: ways to leave somebody out, best first.

        Who was in stays before who was not; then, who does not reach the most others goes first,
        then who came last.
        """
        pairs = self._apart(now)
        for _, way in zip(range(_MOST_WAYS), self._ways(list(candidates), pairs), strict=False):
            yield way

    def partner(
        self, candidate: Candidate, others: Sequence[Candidate], now: float
    ) -> Candidate | None:
        """One of the others that the candidate does not reach."""
        pairs = self._apart(now)
        return next((c for c in others if frozenset((candidate.address, c.address)) in pairs), None)

    def _apart(self, now: float) -> set[frozenset[str]]:
        return {pair for pair, trouble in self._pairs.items() if now < trouble.until}

    def _ways(
        self, candidates: list[Candidate], pairs: set[frozenset[str]]
    ) -> Iterator[list[Candidate]]:
        met = [
            both
            for both in combinations(candidates, 2)
            if frozenset((both[0].address, both[1].address)) in pairs
        ]
        if not met:
            yield candidates
            return

        def rank(candidate: Candidate) -> tuple[bool, int, int]:
            return (
                candidate.member,
                -sum(candidate in both for both in met),
                -candidate.order,
            )

        worst = min((c for both in met for c in both), key=rank)
        first = next(both for both in met if worst in both)
        for out in sorted(first, key=rank):
            yield from self._ways([c for c in candidates if c is not out], pairs)
