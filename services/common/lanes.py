"""Base class of both ends of the grpc lane."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common import wire
from hearth.common.types import SYNC


class StreamLane(_native.Lane):
    """A lane whose syncs are numbered messages of a Forward stream; counts the bytes of a step."""

    def __init__(self, sync_type: int) -> None:
        """sync_type: a hearth.v1.SyncType. Raises HearthError INVALID_ARGUMENT if unknown."""
        super().__init__()
        self._sync_type = sync_type
        wire.type_name(sync_type)
        self._step_id = 0
        # Index of the next sync in the step, from 0.
        self._index = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    def all_reduce(self, x: npt.NDArray[np.float32]) -> None:
        """Replaces x, f32 [rows, columns], by its sum over all ranks, in place."""
        self._reduce(x, self._sync_type)

    def all_reduce_exact(self, x: npt.NDArray[np.float32]) -> None:
        """The same, in f32 whatever the sync type."""
        self._reduce(x, SYNC["f32"])

    def _reduce(self, x: npt.NDArray[np.float32], sync_type: int) -> None:
        raise NotImplementedError

    def begin(self, step_id: int) -> None:
        """Starts step `step_id`: its syncs count from 0."""
        self._step_id = step_id
        self._index = 0
        self.sent_bytes = 0
        self.received_bytes = 0
