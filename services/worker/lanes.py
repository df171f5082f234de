"""The worker's end of the grpc lane: syncs that travel on the Forward stream through the root."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hearth.common import wire
from hearth.common.errors import HearthError, Reason
from hearth.common.lanes import StreamLane
from hearth.v1 import common_pb2, worker_pb2


class StreamEnded(Exception):  # noqa: N818 (an event, not an error)
    """The Forward stream ended; nothing more can be sent."""


class GrpcLane(StreamLane):
    """Sends this rank's partial sum to the root, and waits for the sum over all ranks.

    `receive` blocks for the next message of the stream and raises StreamEnded at its end.
    """

    def __init__(
        self,
        send: Callable[[worker_pb2.ForwardResponse], None],
        receive: Callable[[], worker_pb2.ForwardRequest],
        sync_type: int,
    ) -> None:
        super().__init__(sync_type)
        self._send = send
        self._receive = receive

    def _reduce(self, x: npt.NDArray[np.float32], sync_type: int) -> None:
        """Replaces x, float32 [rows, hidden_size], by its sum over all ranks, in place.

        Raises StreamEnded, or HearthError BAD_STEP for a message that is not the next sync.
        """
        frame = worker_pb2.SyncFrame(
            step_id=self._step_id,
            index=self._index,
            data=wire.encode(x, sync_type),
            sync_type=common_pb2.SyncType.ValueType(sync_type),
        )
        self._send(worker_pb2.ForwardResponse(sync=frame))
        self.sent_bytes += len(frame.data)
        reply = self._receive()
        kind = reply.WhichOneof("message")
        if kind != "sync":
            raise self._unexpected(f"a message {kind!r}")
        answer = reply.sync
        if (answer.step_id, answer.index) != (self._step_id, self._index):
            raise self._unexpected(f"sync {answer.index} of step {answer.step_id}")
        x[:] = wire.decode(answer.data, sync_type, *x.shape)
        self.received_bytes += len(answer.data)
        self._index += 1

    def _unexpected(self, what: str) -> HearthError:
        problem = f"received {what}, expected sync {self._index} of step {self._step_id}"
        return HearthError(Reason.BAD_STEP, problem)
