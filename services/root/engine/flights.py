"""The steps in flight: submits batches to the runner, and makes tokens of what they give."""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures

from hearth.common.errors import HearthError
from hearth.root.engine import errors, sampling
from hearth.root.engine.delivery import Delivery
from hearth.root.engine.interfaces import StepRunner
from hearth.root.engine.request import Active
from hearth.root.scheduling.batch import Batch, StepOutput

log = logging.getLogger(__name__)


class Flights:
    """Batches in the order in which they were submitted, in which they also end.

    Belongs to the engine's thread.
    """

    def __init__(
        self,
        runner: StepRunner,
        requests: Delivery,
        fail: Callable[[Active, HearthError], object],
        wake: Callable[[], object],
        columns: int | None,
    ) -> None:
        """fail: ends one request. wake: called, in any thread, when a step ended in another.

        columns: of a row of logits only so many stand for tokens; None: all.
        """
        self._runner = runner
        self._requests = requests
        self._fail = fail
        self._wake = wake
        self._columns = columns
        self._steps: deque[tuple[Batch, futures.Future[StepOutput]]] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def full(self) -> bool:
        """True when another batch would only wait behind those in flight."""
        return len(self._steps) >= self._runner.depth

    @property
    def done(self) -> bool:
        """True when the oldest step has ended."""
        return bool(self._steps) and self._steps[0][1].done()

    def begin(self, batch: Batch) -> None:
        """Submits a batch, whose sequences all have requests."""
        begin = time.perf_counter()
        wanted: list[int] = []
        for part in batch.sequences:
            active = self._requests.get(part.seq_id)
            assert active is not None
            active.started = active.started or begin
            if part.outputs:
                wanted.append(active.params.sampling.candidates)
        # Columns that stand for no token could be among the best.
        candidates = sampling.candidates(wanted) if self._columns is None else 0
        step = self._runner.submit(batch, candidates)
        self._steps.append((batch, step))
        if not step.done():
            step.add_done_callback(lambda _: self._wake())

    def finish(self) -> tuple[Batch, dict[int, tuple[int, ...]]]:
        """The oldest batch, and new tokens of its sequences; waits for the step.

        Raises HearthError of the runner. A sequence whose sampler fails ends alone.
        """
        batch, step = self._steps.popleft()
        output = step.result()
        if len(output.logits) != len(batch.output_rows):
            raise RuntimeError(
                f"the step gave {len(output.logits)} rows of logits, "
                f"{len(batch.output_rows)} were wanted"
            )
        tokens: dict[int, tuple[int, ...]] = {}
        row = 0
        for part in batch.sequences:
            rows = slice(row, row + part.outputs)
            row += part.outputs
            active = self._requests.get(part.seq_id)
            if not part.outputs or active is None:  # None: cancelled while it was in flight
                continue
            ids = None if output.ids is None else output.ids[rows]
            logits = output.logits[rows, : self._columns if ids is None else None]
            try:
                tokens[part.seq_id] = sampling.sample(part, logits, ids, active.sampler)
            except Exception as error:
                log.exception("engine: sampling for request %d failed", active.seq_id)
                self._fail(active, errors.not_sampled(error, active.made))
        return batch, tokens

    def drop(self) -> None:
        """Waits for all steps, whose outcome does not matter any more."""
        futures.wait([step for _, step in self._steps])
        self._steps.clear()
