"""The steps in flight: submits batches to the runner and samples tokens from their logits."""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures

from hearth.common.candidates import NO_LIMITS, WHOLE_ROWS, Candidates, Draw
from hearth.common.errors import HearthError
from hearth.root.engine import errors, sampling
from hearth.root.engine.delivery import Delivery
from hearth.root.engine.interfaces import StepRunner
from hearth.root.engine.request import Active
from hearth.root.engine.structure.matching import Masks, Matcher
from hearth.root.scheduling.batch import Batch, StepOutput

log = logging.getLogger(__name__)


class Flights:
    """Batches in flight, oldest first; they end in the order in which they were submitted.

    Belongs to the engine's thread.
    """

    def __init__(
        self,
        runner: StepRunner,
        requests: Delivery,
        fail: Callable[[Active, HearthError], object],
        distrust: Callable[[Active, HearthError], object],
        wake: Callable[[], object],
        columns: int | None,
    ) -> None:
        """fail: ends one request. distrust: ends one whose pages may be damaged.

        wake: called in any thread when a step ended in another.
        columns: number of logits per row that stand for tokens; None: all.
        """
        self._runner = runner
        self._requests = requests
        self._fail = fail
        self._distrust = distrust
        self._wake = wake
        self._columns = columns
        # With the time at which each began.
        self._steps: deque[tuple[Batch, futures.Future[StepOutput], float]] = deque()
        # When the last one ended.
        self._ended = 0.0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def full(self) -> bool:
        """True if another batch would only wait behind those in flight."""
        return len(self._steps) >= self._runner.depth

    @property
    def done(self) -> bool:
        """True if the oldest step has ended."""
        return bool(self._steps) and self._steps[0][1].done()

    def begin(self, batch: Batch) -> None:
        """Submits a batch; all its sequences must have requests."""
        begin = time.perf_counter()
        wanted: list[int] = []
        hidden = False
        for part in batch.sequences:
            active = self._requests.get(part.seq_id)
            assert active is not None
            active.started = active.started or begin
            hidden = hidden or active.pooler is not None
            active.cached = part.cached
            if part.outputs:
                wanted.append(active.params.candidates)
        # Columns that are not tokens could be among the candidates.
        candidates = sampling.candidates(wanted) if self._columns is None else 0
        step = self._runner.submit(batch, self._candidates(batch, candidates), hidden)
        self._steps.append((batch, step, begin))
        if not step.done():
            step.add_done_callback(lambda _: self._wake())

    def _candidates(self, batch: Batch, count: int) -> Candidates:
        """So many candidates of each row, of constrained rows only allowed ones.

        The sampler limits whole rows. A row behind drafts is sampled only if all of them were, so
        its draw has the number that follows theirs.
        """
        if not count:
            return WHOLE_ROWS
        matchers: dict[int, tuple[Matcher, tuple[int, ...]]] = {}
        draws: dict[int, Draw] = {}
        row = 0
        for part in batch.sequences:
            active = self._requests.get(part.seq_id)
            for i in range(part.outputs if active is not None else 0):
                assert active is not None
                if active.matcher is not None:
                    matchers[row + i] = active.matcher, part.drafts[:i]
                chosen = active.params.sampling
                if chosen.draws:
                    draws[row + i] = Draw(*active.sampler.draw(i), chosen.nucleus)
            row += part.outputs
        return Candidates(count, Masks(matchers) if matchers else NO_LIMITS, draws)

    def finish(self) -> tuple[Batch, dict[int, tuple[int, ...]], float]:
        """Waits for the oldest step; its batch, the new tokens of its sequences, and its seconds.

        The seconds begin when the step before ended, if that was later: with several steps in
        flight they are the time that each adds.

        Raises the runner's HearthError. If a sampler fails, or the rows of a sequence are not
        finite, only that sequence ends.
        """
        batch, step, begun = self._steps.popleft()
        output = step.result()
        if len(output.logits) != len(batch.output_rows):
            raise RuntimeError(
                f"the step returned {len(output.logits)} rows of logits, "
                f"expected {len(batch.output_rows)}"
            )
        tokens: dict[int, tuple[int, ...]] = {}
        begin = row = 0
        for part in batch.sequences:
            span = range(begin, begin + len(part.tokens))
            begin = span.stop
            rows = slice(row, row + part.outputs)
            row += part.outputs
            active = self._requests.get(part.seq_id)
            if active is None:  # cancelled while it was in flight
                continue
            active.prefilled = part.position + len(part.tokens)
            bad = next((r for r in span if r in output.not_finite), None)
            drafts = range(span.stop - len(part.drafts), span.stop)
            if bad is not None and bad in drafts:
                # Nothing is sampled from it: if the draft is accepted, it is computed again.
                rows = slice(rows.start, rows.stop - (drafts.stop - bad))
            elif bad is not None:
                position = part.position + bad - span.start
                self._distrust(active, errors.not_finite(position, output.not_finite[bad]))
                continue
            if active.pooler is not None:
                if output.hidden is None:
                    raise RuntimeError("the step returned no hidden states")
                active.pooler.add(part.position, output.hidden[span.start : span.stop])
                if part.outputs:
                    tokens[part.seq_id] = (0,)  # ends the sequence, whose limit is one token
                continue
            if not part.outputs:
                continue
            ids = None if output.ids is None else output.ids[rows]
            logits = output.logits[rows, : self._columns if ids is None else None]
            try:
                tails = {r - rows.start: tail for r, tail in output.tails.items()}
                made = sampling.sample(part, logits, ids, active.sampler, active.matcher, tails)
                if active.params.top_logprobs is not None:
                    active.scores.extend(sampling.scores(made, logits, active.params.top_logprobs))
                tokens[part.seq_id] = made
            except HearthError as error:  # of its constraint
                self._fail(active, error)
            except Exception as error:
                log.exception("engine: sampling for request %d failed", active.seq_id)
                self._fail(active, errors.not_sampled(error, active.made))
        now = time.perf_counter()
        seconds, self._ended = now - max(begun, self._ended), now
        return batch, tokens, seconds

    def drop(self) -> None:
        """Waits for all steps and drops their results."""
        futures.wait([step for _, step, _ in self._steps])
        self._steps.clear()
