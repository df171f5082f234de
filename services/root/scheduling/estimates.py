"""Estimates that speculation learns: the part of drafts that is accepted, and costs of steps.

Pure state, without a clock.
"""

from bisect import bisect, insort

# Kinds of drafts: those of a draft model; its drafts again by their confidence, in tenths from ...
MODEL = 0
_CONFIDENCES = (0.4, 0.6, 0.8, 0.95)
_FIRST_CONFIDENCE = MODEL + 1
# ... tokens that a grammar forces, and those behind matches of 2, 3, ... tokens.
FORCED = _FIRST_CONFIDENCE + len(_CONFIDENCES) + 1
_FIRST_MATCH = FORCED + 1
# Tokens of a match below which it says nothing.
LEAST_MATCH = 2
# Where nothing was measured: the part of drafts of each kind that is accepted, ...
_PRIOR = (0.6, 0.3, 0.4, 0.6, 0.75, 0.85, 0.9, 0.15, 0.25, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8)
# ... how many observations that counts for, and what is left of an observation after another one,
# and after drafts that were not used: what was bad once is tried again.
_PRIOR_WEIGHT = 4.0
_FADE = 0.97
_FORGET = 0.99
# Where nothing was measured: the part of a step that a further row takes.
_ROW_COST = 0.15


def matched(length: int) -> int:
    """The kind of drafts behind a match of `length` tokens."""
    return min(_FIRST_MATCH + max(0, length - LEAST_MATCH), len(_PRIOR) - 1)


def confident(confidence: float) -> int:
    """The kind of a draft model's drafts to which it gives this probability."""
    return _FIRST_CONFIDENCE + bisect(_CONFIDENCES, confidence)


class Acceptance:
    """The part of drafts that was accepted, by their kind."""

    def __init__(self) -> None:
        self._accepted = [0.0] * len(_PRIOR)
        self._tried = [0.0] * len(_PRIOR)

    def part(self, kind: int, prior: float | None = None) -> float:
        """Of one draft whose predecessors were accepted. prior: where little was observed."""
        expected = _PRIOR[kind] if prior is None else prior
        accepted, tried = self._accepted[kind], self._tried[kind]
        return (_PRIOR_WEIGHT * expected + accepted) / (_PRIOR_WEIGHT + tried)

    def observe(self, kind: int, drafted: int, accepted: int) -> None:
        """Adds the fate of drafts; those behind the first rejected one say nothing."""
        self._fade(kind, _FADE)
        self._accepted[kind] += accepted
        self._tried[kind] += min(drafted, accepted + 1)

    def unused(self, kind: int) -> None:
        """Notes that drafts of a kind were to be had, and not worth their rows."""
        self._fade(kind, _FORGET)

    def _fade(self, kind: int, left: float) -> None:
        self._accepted[kind] *= left
        self._tried[kind] *= left


class StepCosts:
    """Seconds of steps without prefill, by their number of rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        # Its keys, ascending.
        self._rows: list[int] = []

    def observe(self, rows: int, seconds: float) -> None:
        """A step took so long."""
        known = self._seconds.get(rows)
        if known is None:
            insort(self._rows, rows)
        # One step that was held up says little.
        seen = seconds if known is None else min(seconds, 2 * known)
        self._seconds[rows] = seen if known is None else known + 0.2 * (seen - known)

    def unused(self, rows: int) -> None:
        """Notes that no such step was taken because of its cost, which is measured again later."""
        if rows in self._seconds:
            self._seconds[rows] *= _FORGET

    def of(self, rows: int) -> float:
        """The seconds that a step of so many rows is expected to take; 0 if none was observed.

        Between two numbers of rows that were observed, on the line between them; beyond them a row
        costs what it did last, or more.
        """
        known = self._seconds
        if rows in known or not known:
            return known.get(rows, 0.0)
        place = bisect(self._rows, rows)
        if not place:
            return known[self._rows[0]]
        below = self._rows[place - 1]
        if place == len(self._rows):
            slope = _ROW_COST * known[below] / below
            if place > 1:
                before = self._rows[place - 2]
                slope = max(slope, (known[below] - known[before]) / (below - before))
            return known[below] + slope * (rows - below)
        above = self._rows[place]
        slope = max(0.0, known[above] - known[below]) / (above - below)
        return known[below] + slope * (rows - below)
