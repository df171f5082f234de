"""Speculation: tokens that may come next, as drafts that the next step verifies.

There are three sources of drafts. The grammar of an answer may leave one text only. A lookup finds
the last tokens of a sequence in its own text, then in texts that ended recently, and proposes what
followed them there: summaries, edits of code and answers that quote gain most. A drafter, such as a
small model, guesses any text, and takes time for each token. A draft changes the speed and never
the text (Scheduler.propose).

A draft costs a row of the step, also where it is rejected. So the number of drafts follows from
measurements: how often drafts of a kind were accepted, how long steps of so many rows take, and how
long the drafter takes. An account of what drafts gained and cost bounds the loss where they
mislead.

Pure state, without clock or thread: it belongs to the engine's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hearth.root.scheduling.batch import Batch
from hearth.root.scheduling.drafter import Drafter
from hearth.root.scheduling.estimates import (
    FORCED,
    LEAST_MATCH,
    MODEL,
    Acceptance,
    StepCosts,
    confident,
    matched,
)
from hearth.root.scheduling.lookup import Recent, Text, continuation, longest_match
from hearth.root.scheduling.scheduler import Scheduler
from hearth.root.scheduling.sequence import Sequence as Running

# Most drafts of a sequence in one step.
_MOST = 16
# Drafts of a match, and of a drafter, where they are always used, whatever they cost.
_ALWAYS_MATCH = 8
_ALWAYS_MODEL = 4
# Seconds of steps that are too short for it: a lookup takes 7 to 20 us of the engine's thread.
_SHORT_STEP = 5e-4
# Least gain that is worth it: predictions err.
_MARGIN = 1.05
# The account, in tokens: what it begins with, its most, and what every token adds. At most 1 % of
# the speed and a few tokens can be lost.
_CREDIT = 2.0
_MOST_CREDIT = 4.0
_CREDIT_PER_TOKEN = 0.01
# Seconds in which a drafter may read texts: at the begin, of each second of steps, and the most.
_READING = 1.0
_READING_PART = 0.02
_MOST_READING = 20.0


@dataclass(frozen=True, slots=True)
class Fate:
    """Drafts verified in a step, those accepted, and the drafter's seconds since the last step."""

    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Guess:
    """The text of one sequence, and how its drafts fared."""

    text: Text = field(default_factory=Text)
    acceptance: Acceptance = field(default_factory=Acceptance)
    # Of the text that ends with it; None: it may not be kept.
    salt: bytes | None = None
    # The kind of each draft that was proposed last, and the seconds that they took.
    kinds: tuple[int, ...] = ()
    seconds: float = 0.0
    # The drafter has read the text.
    read: bool = False


@dataclass(slots=True)
class _Step:
    """The next step so far: rows, the tokens that it is expected to add, drafting time."""

    rows: int
    tokens: float
    seconds: float = 0.0


class Speculation:
    """Proposes drafts to a scheduler, and learns from their fate."""

    def __init__(self, always: bool = False, drafter: Drafter | None = None) -> None:
        """always: whatever they gain; a drafter's before those of a lookup."""
        self._always = always
        self._drafter = drafter
        # Drafts so far, how many of them were right, and times that a sequence had any.
        self.drafted = self.accepted = self.steps = 0
        # Seconds that the drafter took, and those that `finished` returned.
        self.seconds = self._reported = 0.0
        self._guesses: dict[int, _Guess] = {}
        self._recent = Recent()
        self._acceptance = Acceptance()
        self._costs = StepCosts()
        self._drafter_costs = StepCosts()
        self._credit = _CREDIT
        self._reading = _READING

    def propose(
        self,
        scheduler: Scheduler,
        forced: Callable[[int], tuple[int, ...]] = lambda seq_id: (),
    ) -> None:
        """Proposes drafts for the sequences whose next row is a decode row.

        forced: tokens that must follow in a sequence, or nearly so; () where nothing is known.
        """
        self._forget_ended(scheduler)
        if not scheduler.limits.most_drafts:
            return
        decoding = [each for each in scheduler.decoding() if not each.following]
        for sequence in decoding:  # what was proposed and not used
            scheduler.propose(sequence.seq_id, ())
        if not self._always:
            seconds = self._costs.of(len(decoding))
            if self._credit <= 0 or seconds < _SHORT_STEP:
                return
        step = _Step(len(decoding), float(len(decoding)))
        found: dict[int, tuple[int, tuple[int, ...]]] = {}
        guessed: list[Running] = []
        for sequence in decoding:
            most = min(_MOST, sequence.most_drafts, scheduler.limits.most_drafts)
            if most <= 0:
                continue
            guess = self._read(sequence)
            kind, drafts = FORCED, forced(sequence.seq_id)[:most]
            if not drafts:
                kind, drafts = self._look_up(guess, most)
            found[sequence.seq_id] = kind, drafts
            if kind == FORCED or not self._may_guess(guess):
                continue
            better = self._part(guess, MODEL) > self._part(guess, kind)
            if self._always or not drafts or better:
                guessed.append(sequence)
        done = self._guess(scheduler, guessed, step) if guessed else set()
        for seq_id, (kind, drafts) in found.items():
            if not drafts or seq_id in done:
                continue
            guess = self._guesses[seq_id]
            count, gained = self._count(guess, kind, len(drafts), step)
            if not count:
                self._unused(guess, kind)
                continue
            step.rows += count
            step.tokens += gained
            guess.kinds = (kind,) * count
            scheduler.propose(seq_id, drafts[:count])

    def finished(self, batch: Batch, tokens: Mapping[int, Sequence[int]], seconds: float) -> Fate:
        """Learns from a step that took `seconds`; the fate of its drafts.

        tokens: the new ones of each sequence.
        """
        drafted = accepted = made = sequences = 0
        drafting = 0.0
        for part in batch.sequences:
            if not part.outputs or part.seq_id not in tokens:
                continue
            sequences += 1
            made += len(tokens[part.seq_id])
            guess = self._guesses.get(part.seq_id)
            if guess is None:
                continue
            drafting += guess.seconds
            guess.seconds = 0.0
            if part.outputs < 2:
                continue
            count, right = part.outputs - 1, len(tokens[part.seq_id]) - 1
            self._observe(guess, guess.kinds[:count], right)
            drafted += count
            accepted += right
            self.steps += 1
        if batch.decode_rows == batch.rows:
            self._costs.observe(batch.rows, seconds)
        self._credit += _CREDIT_PER_TOKEN * made
        if drafted or drafting:
            alone = self._costs.of(batch.rows - drafted)
            taken = self._costs.of(batch.rows) + drafting
            slower = max(0.0, taken / alone - 1) if alone else 0.0
            gained = accepted - sequences * slower
            self._credit += gained
            self._reading += max(0.0, gained) * alone
        self._reading = min(self._reading + _READING_PART * seconds, _MOST_READING)
        self._credit = min(self._credit, _MOST_CREDIT)
        self.drafted += drafted
        self.accepted += accepted
        since, self._reported = self.seconds - self._reported, self.seconds
        return Fate(drafted, accepted, since)

    def _read(self, sequence: Running) -> _Guess:
        """The state of a sequence, with all of its tokens."""
        guess = self._guesses.setdefault(sequence.seq_id, _Guess())
        request = sequence.request
        guess.salt = request.salt if request.prefix_cache else None
        guess.text.extend(sequence.tokens[guess.text.size :])
        return guess

    def _look_up(self, guess: _Guess, most: int) -> tuple[int, tuple[int, ...]]:
        """The kind of the longest match of the text's end, and up to `most` tokens after it."""
        text = guess.text.view
        length, end = longest_match(text[:-1], text)
        if length >= LEAST_MATCH:
            return matched(length), continuation(text, end, most)
        if guess.salt is not None:
            recent = self._recent.of(guess.salt)
            length, end = longest_match(recent[:-1], text)
            if length >= LEAST_MATCH:
                return matched(length), continuation(recent, end, most)
        return MODEL, ()

    def _guess(self, scheduler: Scheduler, sequences: Sequence[Running], step: _Step) -> set[int]:
        """Proposes the drafter's tokens for sequences, if that is faster; the ids that got any.

        One draft a time for all of them, as long as a further one is worth its time.
        """
        assert self._drafter is not None
        if not self._always:
            parts = [self._part(self._guesses[each.seq_id], MODEL) for each in sequences]
            if not self._worth_guessing(parts, step):
                self._drafter_costs.unused(len(parts))
                for sequence in sequences:
                    self._unused(self._guesses[sequence.seq_id], MODEL)
                return set()
        drafts: dict[int, list[int]] = {each.seq_id: [] for each in sequences}
        kinds: dict[int, list[int]] = {each.seq_id: [] for each in sequences}
        chances = dict.fromkeys(drafts, 1.0)
        active = list(sequences)
        while active:
            found, seconds = self._drafter.guess([(each, drafts[each.seq_id]) for each in active])
            self.seconds += seconds
            self._reading -= seconds * found.count(None) / len(found)
            step.seconds += seconds
            if None not in found:
                self._drafter_costs.observe(len(active), seconds)
            share = self._drafter_costs.of(len(active)) / len(active)
            going: list[Running] = []
            for sequence, draft in zip(active, found, strict=True):
                seq_id = sequence.seq_id
                guess = self._guesses[seq_id]
                guess.read = draft is not None
                if draft is None:
                    continue
                kind = confident(draft.confidence)
                guess.seconds += seconds / len(active)
                chances[seq_id] *= self._part(guess, kind)
                if self._dear(chances[seq_id], self._row_seconds(step.rows), step):
                    continue
                drafts[seq_id].append(draft.token)
                kinds[seq_id].append(kind)
                step.rows += 1
                step.tokens += chances[seq_id]
                count = len(drafts[seq_id])
                most = min(_MOST, sequence.most_drafts, scheduler.limits.most_drafts)
                next_chance = chances[seq_id] * self._part(guess, MODEL)
                if count < (min(most, _ALWAYS_MODEL) if self._always else most) and not self._dear(
                    next_chance, share + self._row_seconds(step.rows), step
                ):
                    going.append(sequence)
            active = going
        for seq_id, tokens in drafts.items():
            self._guesses[seq_id].kinds = tuple(kinds[seq_id])
            scheduler.propose(seq_id, tokens)
        return {seq_id for seq_id, tokens in drafts.items() if tokens}

    def _may_guess(self, guess: _Guess) -> bool:
        """True if a drafter has read the text, or may."""
        return self._drafter is not None and (self._always or guess.read or self._reading > 0)

    def _worth_guessing(self, parts: Sequence[float], step: _Step) -> bool:
        """True if some number of a drafter's drafts is expected to be faster than none."""
        each = self._drafter_costs.of(len(parts))
        least = _MARGIN * step.tokens / self._costs.of(step.rows)
        expected, chances = step.tokens, [1.0] * len(parts)
        for drafts in range(1, _MOST + 1):
            chances = [chance * part for chance, part in zip(chances, parts, strict=True)]
            expected += sum(chances)
            seconds = self._costs.of(step.rows + drafts * len(parts)) + drafts * each
            if expected > least * seconds:
                return True
        return False

    def _dear(self, tokens: float, seconds: float, step: _Step) -> bool:
        """True if the step is faster without so many tokens more in so many seconds more."""
        if self._always:
            return False
        return tokens * (self._costs.of(step.rows) + step.seconds) < step.tokens * seconds

    def _row_seconds(self, rows: int) -> float:
        """Seconds that one more row takes."""
        return max(0.0, self._costs.of(rows + 1) - self._costs.of(rows))

    def _count(self, guess: _Guess, kind: int, most: int, step: _Step) -> tuple[int, float]:
        """The best number of drafts, up to `most`, and the tokens that they are expected to add."""
        if self._always:
            return min(most, _ALWAYS_MATCH), 0.0
        part = self._part(guess, kind)
        best, count, gained = _MARGIN * step.tokens / self._costs.of(step.rows), 0, 0.0
        expected, chance = 0.0, 1.0
        for drafts in range(1, most + 1):
            chance *= part
            expected += chance
            speed = (step.tokens + expected) / self._costs.of(step.rows + drafts)
            if speed > best:
                best, count, gained = speed, drafts, expected
        return count, gained

    def _part(self, guess: _Guess, kind: int) -> float:
        """The part of drafts that is accepted, of a sequence as far as it has had any."""
        return guess.acceptance.part(kind, self._acceptance.part(kind))

    def _observe(self, guess: _Guess, kinds: Sequence[int], right: int) -> None:
        """Learns from drafts of which the first `right` were accepted."""
        tried = kinds[: right + 1]
        counts = {kind: [0, 0] for kind in tried}
        for place, kind in enumerate(tried):
            for each in {kind, MODEL} if kind < FORCED else {kind}:
                count = counts.setdefault(each, [0, 0])
                count[0] += 1
                count[1] += place < right
        for kind, (drafted, accepted) in counts.items():
            for acceptance in (guess.acceptance, self._acceptance):
                acceptance.observe(kind, drafted, accepted)

    def _unused(self, guess: _Guess, kind: int) -> None:
        self._acceptance.unused(kind)
        guess.acceptance.unused(kind)

    def _forget_ended(self, scheduler: Scheduler) -> None:
        """Moves the texts of sequences that are not known any more to the recent ones."""
        for seq_id in [each for each in self._guesses if not scheduler.knows(each)]:
            guess = self._guesses.pop(seq_id)
            if guess.salt is not None:
                self._recent.keep(guess.salt, guess.text.view)
            if self._drafter is not None:
                self._drafter.forget(seq_id)
