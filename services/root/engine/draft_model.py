"""A small model as a drafter: its own KV cache, steps and sequences beside those of the engine.

It reads each sequence as far as it is known, then guesses the most likely next token. Its KV cache
follows the text: after rejected drafts it goes back to the last position that both agree on. When a
sequence ends, its pages stay until they are needed. A later sequence of the same salt that begins
with the same tokens takes them over, as the turns of a conversation do. The state of a recurrent
model goes back behind what is not known yet; where it would have to go back further, as when a text
is edited, the model reads from the start.

Belongs to the engine's thread.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hearth.common.candidates import Candidates
from hearth.root.engine.interfaces import StepRunner
from hearth.root.scheduling.batch import Batch, Limits, SequenceStep, StepOutput
from hearth.root.scheduling.drafter import Draft
from hearth.root.scheduling.pages import PagePool
from hearth.root.scheduling.sequence import Sequence as Running

log = logging.getLogger(__name__)

# Candidates of a row: the confidence in the best is its part of their probabilities.
_CANDIDATES = 4


@dataclass(slots=True, eq=False)
class _Reading:
    """The part of a sequence that the model has read: the tokens whose KV its pages hold."""

    number: int
    salt: bytes | None
    tokens: list[int] = field(default_factory=list)
    # The first of them that were compared with the sequence's known tokens.
    agreed: int = 0
    # Tokens before which a state of the model's cannot go back.
    settled: int = 0
    pages: tuple[int, ...] = ()
    # Pages of its table in its last step, which the model's nodes hold.
    table: int = 0


class DraftModel:
    """A Drafter (hearth.root.scheduling.drafter) that runs a model.

    Where a step of the model fails, it guesses nothing from then on.
    """

    def __init__(self, runner: StepRunner, limits: Limits, vocab_size: int) -> None:
        """limits: of the model's KV cache. vocab_size: tokens that may be guessed."""
        self._runner = runner
        self._limits = limits
        self._vocab_size = vocab_size
        self._pool = PagePool(limits.max_pages)
        # Those of sequences by their number, and those of sequences that ended, oldest first.
        self._readings: dict[int, _Reading] = {}
        self._ended: list[_Reading] = []
        self._numbers = 0
        # Tables that the next step ends, and whether it is the first.
        self._dropped: list[int] = []
        self._fresh = True
        self._failed = False

    def guess(
        self, asked: Sequence[tuple[Running, Sequence[int]]]
    ) -> tuple[list[Draft | None], float]:
        """See Drafter."""
        found: list[Draft | None] = [None] * len(asked)
        if self._failed:
            return found, 0.0
        steps: list[SequenceStep] = []
        places: list[int] = []
        rows = self._limits.max_step_tokens
        for place, (sequence, drafts) in enumerate(asked):
            step = self._next_step(sequence, [*sequence.tokens, *drafts], rows)
            if step is not None:
                steps.append(step)
                places.append(place)
                rows -= len(step.tokens)
            if not rows:
                break
        if not steps:
            return found, 0.0
        try:
            output = self._runner.submit(self._batch(steps), Candidates(_CANDIDATES)).result()
        except Exception as error:
            self._failed = True
            log.warning("no more drafts: a step of the draft model failed: %s", error)
            return found, 0.0
        row = first = 0
        for step, place in zip(steps, places, strict=True):
            damaged = any(first + i in output.not_finite for i in range(len(step.tokens)))
            first += len(step.tokens)
            if step.outputs and not damaged:
                found[place] = self._best(output, row)
            row += step.outputs
            if damaged:
                self._drop(self._readings.pop(asked[place][0].seq_id))
        return found, output.wall_seconds

    def forget(self, seq_id: int) -> None:
        """See Drafter."""
        reading = self._readings.pop(seq_id, None)
        if reading is None:
            return
        if reading.salt is None:
            self._drop(reading)
        else:
            self._ended.append(reading)

    def check(self) -> None:
        """Integrity check for tests; RuntimeError names the inconsistency."""
        readings = [*self._readings.values(), *self._ended]
        self._pool.check({reading.number: reading.pages for reading in readings})

    def _next_step(self, sequence: Running, text: list[int], rows: int) -> SequenceStep | None:
        """The next tokens of `text` to read, at most `rows`; None where there is no room."""
        if len(text) > self._limits.context_size:
            return None
        reading = self._readings.get(sequence.seq_id) or self._begin(sequence, text)
        if reading is None:
            return None
        self._readings[sequence.seq_id] = reading
        position = self._position(reading, text)
        # Drafts may be replaced later; what is known is not.
        reading.agreed = min(position, len(sequence.tokens))
        del reading.tokens[position:]
        chunk = text[position : position + rows]
        end = position + len(chunk)
        table = -(-end // self._limits.page_size)
        if not self._allocate(reading, table - len(reading.pages)):
            return None
        kept = min(reading.table, table)
        new_pages, reading.table = reading.pages[kept:table], table
        reading.tokens += chunk
        outputs = 1 if end == len(text) else 0
        # The last known token too is read again where it is the last to be read.
        undo = min(max(0, end - len(sequence.tokens) + 1), self._limits.most_drafts, end)
        reading.settled = end - undo
        return SequenceStep(
            reading.number, tuple(chunk), position, kept, new_pages, outputs, undo=undo
        )

    def _position(self, reading: _Reading, text: list[int]) -> int:
        """Number of first tokens of `text` that need not be read: all but the last at most."""
        common = min(_common(reading.tokens, text, reading.agreed), len(text) - 1)
        return 0 if self._limits.stateful and common < reading.settled else common

    def _begin(self, sequence: Running, text: list[int]) -> _Reading | None:
        """A reading that begins with pages of a sequence that ended, if any are of use.

        None where too many sequences have one, some of which were preempted.
        """
        request = sequence.request
        salt = request.salt if request.prefix_cache else None
        best, length = None, self._limits.page_size
        for reading in self._ended:
            if salt is not None and reading.salt == salt:
                reading.agreed = 0
                common = self._position(reading, text)
                if common >= length:
                    best, length = reading, common
        if best is not None:
            self._ended.remove(best)
            return best
        while len(self._readings) + len(self._ended) >= self._limits.max_running:
            if not self._ended:
                return None
            self._drop(self._ended.pop(0))
        self._numbers += 1
        return _Reading(self._numbers, salt)

    def _allocate(self, reading: _Reading, count: int) -> bool:
        """Gives a reading so many pages more; False if there are not enough."""
        while count > self._pool.available and self._ended:
            self._drop(self._ended.pop(0))
        if count > self._pool.available:
            return False
        reading.pages += self._pool.allocate(max(0, count))
        return True

    def _drop(self, reading: _Reading) -> None:
        """Frees the pages of a reading."""
        self._pool.release(reading.pages)
        if reading.table:
            self._dropped.append(reading.number)

    def _batch(self, steps: Sequence[SequenceStep]) -> Batch:
        """The step of these sequences."""
        tokens = tuple(token for step in steps for token in step.tokens)
        output_rows: list[int] = []
        end = 0
        for step in steps:
            end += len(step.tokens)
            output_rows += [end - 1] * step.outputs
        ended, self._dropped = tuple(self._dropped), []
        fresh, self._fresh = self._fresh, False
        decode = sum(len(step.tokens) for step in steps if step.outputs)
        return Batch(tuple(steps), tokens, tuple(output_rows), decode, ended, fresh)

    def _best(self, output: StepOutput, row: int) -> Draft | None:
        """The most likely token of an output row; None if it is not one of the engine's model."""
        logits = output.logits[row]
        best = int(np.argmax(logits))
        token = best if output.ids is None else int(output.ids[row][best])
        if token >= self._vocab_size:
            return None
        return Draft(token, 1.0 / float(np.exp(logits - logits[best]).sum()))


def _common(left: Sequence[int], right: Sequence[int], begin: int) -> int:
    """The number of first tokens that are equal; the first `begin` are known to be."""
    most = min(len(left), len(right))
    place = min(begin, most)
    while place < most and left[place] == right[place]:
        place += 1
    return place
