"""Finds out whether a worker or the model is at fault for activations that are not finite.

A worker from which they come may have bad memory. So its cluster ends, it is left out, and the
sequences run again. If one of them is not finite again, on another plan, the model makes it so: the
worker was innocent, and for a while no other is suspected. Used by the thread that runs steps.
"""

import logging
import time
from collections.abc import Callable, Mapping

from hearth.common.errors import HearthError, Reason
from hearth.root.scheduling.batch import Batch

log = logging.getLogger(__name__)

# No worker is suspected for so long after the model was found at fault.
_MODEL_SECONDS = 600.0
# Sequences that are remembered, the latest.
_MAX_SEQUENCES = 1024


class Suspicion:
    """Suspects of a model's sequences, over all formations."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By sequence: the worker from which its values came that were not finite.
        self._suspects: dict[int, str] = {}
        self._model_until = float("-inf")
        self._cleared: list[str] = []

    def judge(self, batch: Batch, rows: Mapping[int, str]) -> HearthError | None:
        """The error that names the worker at fault; None if the sequences are to end.

        rows: of the batch, not finite; for each the worker from which that comes, or "".
        """
        blamed: dict[int, str] = {}
        begin = 0
        for part in batch.sequences:
            # Drafts may be tokens that no text has there: what they lead to proves nothing.
            span = range(begin, begin + len(part.tokens) - len(part.drafts))
            begin += len(part.tokens)
            found = [(row, rows[row]) for row in span if row in rows]
            if not found:
                continue
            suspect = self._suspects.pop(part.seq_id, None)
            if suspect is not None:
                log.warning(
                    "activations are not finite without worker %s too: the model's weights may be "
                    "damaged",
                    suspect,
                )
                self._cleared.append(suspect)
                self._model_until = self._clock() + _MODEL_SECONDS
            elif found[0][1]:
                blamed[part.seq_id] = found[0][1]
        if not blamed or self._clock() < self._model_until:
            return None
        # All sequences of this step run again: each that is not finite then is a proof.
        self._suspects |= blamed
        for seq_id in list(self._suspects)[:-_MAX_SEQUENCES]:
            del self._suspects[seq_id]
        address = next(iter(blamed.values()))
        problem = (
            f"worker {address}: its activations are not finite, though its input was; check its "
            "memory"
        )
        return HearthError(Reason.WORKER_UNFIT, problem, {"worker": address})

    def cleared(self) -> list[str]:
        """Workers found innocent since the last call."""
        cleared, self._cleared = self._cleared, []
        return cleared
