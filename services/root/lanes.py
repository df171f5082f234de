"""The root's end of the grpc lane: every rank's partial sum comes in, their sum goes out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common import wire
from hearth.root.links import WorkerLink, expect_sync
from hearth.v1 import worker_pb2


class HubLane(_native.Lane):
    """All-reduce over the Forward streams, the root in the middle.

    Sums run in rank order, in f32; every rank, the root too, goes on with what was on the wire, so
    that all have the same bits whatever the sync type rounds.
    """

    def __init__(self, links: Sequence[WorkerLink], sync_type: int) -> None:
        """links: the workers in rank order, ranks 1 and up; sync_type: of hearth.v1.SyncType."""
        super().__init__()
        self._links = links
        self._sync_type = sync_type
        self._exact = wire.type_name(sync_type) == "f32"
        self._step_id = 0
        self._index = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    def begin(self, step_id: int) -> None:
        """The next syncs are those of step `step_id`, counted from 0."""
        self._step_id = step_id
        self._index = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    def all_reduce(self, x: npt.NDArray[np.float32]) -> None:
        """x, f32 [rows, hidden_size], becomes the sum over all ranks. Raises HearthError."""
        for link in self._links:
            frame = expect_sync(link.receive(), link, self._step_id, self._index)
            x += wire.decode(frame.data, self._sync_type, *x.shape)
            self.received_bytes += len(frame.data)
        data = wire.encode(x, self._sync_type)
        answer = worker_pb2.ForwardRequest(
            sync=worker_pb2.SyncFrame(step_id=self._step_id, index=self._index, data=data)
        )
        for link in self._links:
            link.send(answer)
        if not self._exact:
            x[:] = wire.decode(data, self._sync_type, *x.shape)
        self.sent_bytes += len(data) * len(self._links)
        self._index += 1
