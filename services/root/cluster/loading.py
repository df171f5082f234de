"""Brings every node's shard in, all at once: the root's own from files, the workers' by stream."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
import numpy.typing as npt

from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import Metrics
from hearth.converter import Model
from hearth.root.cluster import wire
from hearth.root.cluster.links import WorkerLink
from hearth.root.cluster.streaming import LoadEvent
from hearth.root.planning.plan import Plan, Slice
from hearth.v1 import worker_pb2
from hearth.worker.shard import NodeShard, block_rows


class Loading:
    """One loading of a plan; `run` it once."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        on_progress: Callable[[int, LoadEvent], None],
        metrics: Metrics,
    ) -> None:
        """on_progress: (rank, event), called in several threads."""
        self._model = model
        self._plan = plan
        self._on_progress = on_progress
        self._metrics = metrics
        self._giving_up = threading.Event()
        self._leases: Sequence[tuple[WorkerLink, worker_pb2.Lease]] = ()

    def run(
        self,
        own: NodeShard | Callable[[], NodeShard],
        links: Sequence[WorkerLink],
        begins: Sequence[worker_pb2.LoadBegin],
        on_end: Callable[[WorkerLink, HearthError], None],
    ) -> NodeShard:
        """The root's shard, complete; every link's Forward stream is open, with `on_end` to come.

        own: the root's shard where it is loaded already, else what makes it. begins: of each link.
        The first failure ends all others and is raised.
        """
        self._leases = [(link, begin.lease) for link, begin in zip(links, begins, strict=True)]
        failure: BaseException | None = None
        with ThreadPoolExecutor(1 + len(links), "load") as pool:
            first = pool.submit(self._load_own, own)
            others = [
                pool.submit(self._load_worker, link, rank, begin, on_end)
                for rank, (link, begin) in enumerate(zip(links, begins, strict=True), 1)
            ]
            everyone: list[Future[Any]] = [first, *others]
            try:
                for future in as_completed(everyone):
                    failure = failure or future.exception()
                    if failure is not None:
                        self.give_up()
            except BaseException:
                # An interrupt: the pool waits for its threads, so they must end.
                self.give_up()
                raise
        if failure is not None:
            raise failure
        return first.result()

    @property
    def given_up(self) -> bool:
        """Whether what ends now ends because of `give_up`."""
        return self._giving_up.is_set()

    def give_up(self) -> None:
        """Ends a `run` that is under way, from any thread, and gives the leases back."""
        if not self._giving_up.is_set():
            self._giving_up.set()
            for link, lease in self._leases:
                link.close(lease)

    def _load_own(self, own: NodeShard | Callable[[], NodeShard]) -> NodeShard:
        if isinstance(own, NodeShard):
            return own  # a worker was lost, this shard was not
        shard = own()
        plan = self._plan.nodes[0]
        loaded = 0
        for part in plan.slices:
            if self._giving_up.is_set():
                raise HearthError(Reason.CANCELLED, "loading was given up")
            entry = wire.slice_entry(part, self._model.fingerprint)
            for begin in range(0, entry.rows, block_rows(entry)):
                end = min(begin + block_rows(entry), entry.rows)
                shard.load(entry, self._read(part, begin, end), begin)
            loaded += part.size_bytes
            self._metrics.weights("local", part.size_bytes)
            self._on_progress(0, LoadEvent(plan.weight_bytes, 0, loaded))
        return shard

    def _load_worker(
        self,
        link: WorkerLink,
        rank: int,
        begin: worker_pb2.LoadBegin,
        on_end: Callable[[WorkerLink, HearthError], None],
    ) -> None:
        plan = self._plan.nodes[rank]
        done = link.load(
            begin,
            lambda index, begin, end: self._read(plan.slices[index], begin, end),
            lambda event: self._on_progress(rank, event),
        )
        self._metrics.weights("network", done.network_bytes)
        self._metrics.weights("cache", done.cache_bytes)
        self._on_progress(rank, LoadEvent(plan.weight_bytes, done.network_bytes, done.cache_bytes))
        # At once: a worker gives its lease up when no stream holds it.
        link.open(begin.lease, lambda error: on_end(link, error))

    def _read(self, part: Slice, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Rows [begin, end) of a slice."""
        rows = part.rows[0] + begin, part.rows[0] + end
        return self._model.read(part.tensor, part.kind, rows, part.columns)
