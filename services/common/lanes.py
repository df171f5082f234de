"""Base class of both ends of the grpc lane."""

from __future__ import annotations

from hearth import _native
from hearth.common import wire


class StreamLane(_native.Lane):
    """A lane whose syncs are numbered messages of a Forward stream; counts the bytes of a step."""

    def __init__(self, sync_type: int) -> None:
        """sync_type: a hearth.v1.SyncType. Raises HearthError INVALID_ARGUMENT if unknown."""
        super().__init__()
        self._sync_type = sync_type
        self._exact = wire.type_name(sync_type) == "f32"
        self._step_id = 0
        # Index of the next sync in the step, from 0.
        self._index = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    def begin(self, step_id: int) -> None:
        """Starts step `step_id`: its syncs count from 0."""
        self._step_id = step_id
        self._index = 0
        self.sent_bytes = 0
        self.received_bytes = 0
