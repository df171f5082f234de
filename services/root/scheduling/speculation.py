"""Speculation by lookup: as drafts, the tokens that followed the same words earlier.

A sequence's last tokens are looked up in its own text, then in texts that ended recently. What
followed them there is proposed; the next step verifies it (Scheduler.propose), so that a draft
changes the speed and never the text. Summaries, edits of code and answers that quote gain most.

A row of draft costs time, also where it is rejected. So its number follows from two measurements:
how often drafts behind a match of that length were accepted, and how long steps of so many rows
take. An account of what drafts gained and cost bounds the loss where both mislead.

Pure state, without clock or thread: it belongs to the engine's.
"""

from bisect import bisect, insort
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hearth.root.scheduling.batch import Batch
from hearth.root.scheduling.scheduler import Scheduler

Tokens = npt.NDArray[np.int32]

# Tokens of a match that are compared at most, and those below which it says nothing.
_LONGEST = 16
_LEAST = 2
# Newest places that are compared: one token may fill a text.
_PLACES = 1024
# Most drafts of a sequence in one step.
_MOST = 16
# Drafts of a match under "lookup", which asks for them whatever they cost.
_ALWAYS = 8
# Texts that ended: tokens kept of one salt, and salts.
_KEPT_TOKENS = 1 << 16
_KEPT_SALTS = 8
# Between two texts; no token.
_BORDER = -1
# Where nothing was measured: the part of drafts accepted behind matches of 2, 3, ... tokens, ...
_PRIOR = (0.15, 0.25, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8)
# ... how many observations that counts for, and what is left of an observation after another one,
# and after a match that was not used: what was bad once is tried again.
_PRIOR_WEIGHT = 4.0
_FADE = 0.97
_FORGET = 0.99
# Where nothing was measured: the part of a step that a further row takes.
_ROW_COST = 0.15
# Seconds of steps that are too short for it: a lookup takes 7 to 20 us of the engine's thread.
_SHORT_STEP = 5e-4
# Least gain that is worth it: predictions err.
_MARGIN = 1.05
# The account, in tokens: what it begins with, its most, and what every token adds. At most 1 % of
# the speed and a few tokens can be lost.
_CREDIT = 2.0
_MOST_CREDIT = 4.0
_CREDIT_PER_TOKEN = 0.01


class Text:
    """Tokens that are added at the end: i32."""

    def __init__(self) -> None:
        self._tokens = np.empty(256, np.int32)
        self.size = 0

    def extend(self, tokens: Sequence[int] | Tokens) -> None:
        """Adds tokens."""
        end = self.size + len(tokens)
        if end > len(self._tokens):
            larger = np.empty(max(end, 2 * len(self._tokens)), np.int32)
            larger[: self.size] = self.view
            self._tokens = larger
        self._tokens[self.size : end] = tokens
        self.size = end

    @property
    def view(self) -> Tokens:
        """All tokens, without a copy."""
        return self._tokens[: self.size]


def longest_match(text: Tokens, tail: Tokens) -> tuple[int, int]:
    """(length, end) of the newest among the longest places in `text` that end as `tail` ends.

    text[end - length : end] equals the last `length` tokens of `tail`; (0, 0) if the last token is
    nowhere. At most 16 tokens are compared, at the 1,024 newest places of the last token.
    """
    ends = np.flatnonzero(text == tail[-1])[-_PLACES:]
    if not len(ends):
        return 0, 0
    length = 1
    while length < min(_LONGEST, len(tail)):
        before = ends - length
        longer = ends[(before >= 0) & (text[before] == tail[-1 - length])]
        if not len(longer):
            break
        ends = longer
        length += 1
    return length, int(ends[-1]) + 1


def continuation(text: Tokens, end: int, count: int) -> tuple[int, ...]:
    """Up to `count` tokens that follow `end` in `text`, or in a border's text.

    At the end of the text they begin again at `end`: a text that repeats itself does so there.
    """
    following = text[end : end + count]
    border = np.flatnonzero(following == _BORDER)
    if len(border):
        following = following[: border[0]]
    elif 0 < len(following) < count:
        following = np.resize(following, count)
    return tuple(following.tolist())


class Acceptance:
    """The part of drafts that was accepted, by the length of the match that they followed."""

    def __init__(self) -> None:
        self._accepted = [0.0] * len(_PRIOR)
        self._tried = [0.0] * len(_PRIOR)

    def part(self, length: int, prior: float | None = None) -> float:
        """Of one draft whose predecessors were accepted. prior: where little was observed."""
        i = _bucket(length)
        expected = _PRIOR[i] if prior is None else prior
        return (_PRIOR_WEIGHT * expected + self._accepted[i]) / (_PRIOR_WEIGHT + self._tried[i])

    def observe(self, length: int, drafted: int, accepted: int) -> None:
        """The fate of drafts; those behind the first rejected one say nothing."""
        i = _bucket(length)
        self._fade(i, _FADE)
        self._accepted[i] += accepted
        self._tried[i] += min(drafted, accepted + 1)

    def unused(self, length: int) -> None:
        """A match from which no drafts were taken."""
        self._fade(_bucket(length), _FORGET)

    def _fade(self, i: int, left: float) -> None:
        self._accepted[i] *= left
        self._tried[i] *= left


def _bucket(length: int) -> int:
    return max(0, min(length - _LEAST, len(_PRIOR) - 1))


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

    def of(self, rows: int) -> float:
        """The seconds that a step of so many rows is expected to take; 0 if none was observed.

        Between two numbers of rows that were observed, on the line between them.
        """
        known = self._seconds
        if rows in known or not known:
            return known.get(rows, 0.0)
        place = bisect(self._rows, rows)
        if not place:
            return known[self._rows[0]]
        below = self._rows[place - 1]
        if place == len(self._rows):
            return known[below] * (1 + _ROW_COST * (rows - below) / below)
        above = self._rows[place]
        slope = max(0.0, known[above] - known[below]) / (above - below)
        return known[below] + slope * (rows - below)


@dataclass(slots=True)
class _Guess:
    """The text of one sequence, and how its drafts fared."""

    text: Text = field(default_factory=Text)
    acceptance: Acceptance = field(default_factory=Acceptance)
    # Of the text that ends with it; None: it may not be kept.
    salt: bytes | None = None
    # Length of the match behind the drafts that were proposed last.
    length: int = 0


class Recent:
    """Texts that ended, by salt: only sequences of the same salt find them."""

    def __init__(self) -> None:
        self._texts: OrderedDict[bytes, Tokens] = OrderedDict()

    def keep(self, salt: bytes, text: Tokens) -> None:
        """Adds a text; the oldest of its salt, and the salts used least recently, are dropped."""
        border = np.array([_BORDER], np.int32)
        joined = np.concatenate([self.of(salt), text[-_KEPT_TOKENS:], border])
        self._texts[salt] = joined[-_KEPT_TOKENS:]
        self._texts.move_to_end(salt)
        while len(self._texts) > _KEPT_SALTS:
            self._texts.popitem(last=False)

    def of(self, salt: bytes) -> Tokens:
        """The texts of a salt, oldest first, each followed by a border."""
        return self._texts.get(salt, np.empty(0, np.int32))


class Speculation:
    """Proposes drafts to a scheduler, and learns from their fate."""

    def __init__(self, always: bool = False) -> None:
        """always: whatever they gain."""
        self._always = always
        # Drafts so far, and how many of them were right.
        self.drafted = self.accepted = 0
        self._guesses: dict[int, _Guess] = {}
        self._recent = Recent()
        self._acceptance = Acceptance()
        self._costs = StepCosts()
        self._credit = _CREDIT

    def propose(self, scheduler: Scheduler) -> None:
        """Proposes drafts for the sequences whose next row is a decode row."""
        self._forget_ended(scheduler)
        if not scheduler.limits.drafts:
            return
        decoding = scheduler.decoding()
        for sequence in decoding:  # what was proposed and not used
            scheduler.propose(sequence.seq_id, ())
        rows, tokens = len(decoding), float(len(decoding))
        step = self._costs.of(rows)
        if not self._always and (self._credit <= 0 or step < _SHORT_STEP):
            return
        for sequence in decoding:
            most = min(_MOST, sequence.most_drafts)
            if most <= 0:
                continue
            guess = self._guesses.setdefault(sequence.seq_id, _Guess())
            request = sequence.request
            guess.salt = request.salt if request.prefix_cache else None
            guess.text.extend(sequence.tokens[guess.text.size :])
            length, drafts = self._look_up(guess, most)
            if not drafts:
                continue
            count, gained = self._count(guess, length, len(drafts), rows, tokens)
            if not count:
                self._acceptance.unused(length)
                guess.acceptance.unused(length)
                continue
            rows += count
            tokens += gained
            guess.length = length
            scheduler.propose(sequence.seq_id, drafts[:count])

    def finished(
        self, batch: Batch, tokens: Mapping[int, Sequence[int]], seconds: float
    ) -> tuple[int, int]:
        """Learns from a step that took `seconds`; its numbers of drafts and of accepted ones.

        tokens: the new ones of each sequence.
        """
        drafted = accepted = made = sequences = 0
        for part in batch.sequences:
            if not part.outputs or part.seq_id not in tokens:
                continue
            sequences += 1
            made += len(tokens[part.seq_id])
            guess = self._guesses.get(part.seq_id)
            if part.outputs < 2 or guess is None:
                continue
            count, right = part.outputs - 1, len(tokens[part.seq_id]) - 1
            guess.acceptance.observe(guess.length, count, right)
            self._acceptance.observe(guess.length, count, right)
            drafted += count
            accepted += right
        if batch.decode_rows == batch.rows:
            self._costs.observe(batch.rows, seconds)
        self._credit += _CREDIT_PER_TOKEN * made
        if drafted:
            alone = self._costs.of(batch.rows - drafted)
            slower = max(0.0, self._costs.of(batch.rows) / alone - 1) if alone else 0.0
            self._credit += accepted - sequences * slower
        self._credit = min(self._credit, _MOST_CREDIT)
        self.drafted += drafted
        self.accepted += accepted
        return drafted, accepted

    def _look_up(self, guess: _Guess, most: int) -> tuple[int, tuple[int, ...]]:
        """The longest match of the text's end, and up to `most` tokens that followed it."""
        text = guess.text.view
        length, end = longest_match(text[:-1], text)
        if length >= _LEAST:
            return length, continuation(text, end, most)
        if guess.salt is not None:
            recent = self._recent.of(guess.salt)
            length, end = longest_match(recent[:-1], text)
            if length >= _LEAST:
                return length, continuation(recent, end, most)
        return 0, ()

    def _count(
        self, guess: _Guess, length: int, most: int, rows: int, tokens: float
    ) -> tuple[int, float]:
        """The best number of drafts, up to `most`, and the tokens that they are expected to add.

        rows, tokens: of the step so far.
        """
        if self._always:
            return min(most, _ALWAYS), 0.0
        part = guess.acceptance.part(length, self._acceptance.part(length))
        best, count, gained = _MARGIN * tokens / self._costs.of(rows), 0, 0.0
        expected, chance = 0.0, 1.0
        for drafts in range(1, most + 1):
            chance *= part
            expected += chance
            speed = (tokens + expected) / self._costs.of(rows + drafts)
            if speed > best:
                best, count, gained = speed, drafts, expected
        return count, gained

    def _forget_ended(self, scheduler: Scheduler) -> None:
        """Moves the texts of sequences that are not known any more to the recent ones."""
        for seq_id in [each for each in self._guesses if not scheduler.knows(each)]:
            guess = self._guesses.pop(seq_id)
            if guess.salt is not None:
                self._recent.keep(guess.salt, guess.text.view)
