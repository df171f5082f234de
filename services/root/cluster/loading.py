"""Loads all nodes' shards in parallel: the root's own from files, the workers' by stream."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import RootMetrics
from hearth.converter import Model, ModelError
from hearth.root.cluster import wire
from hearth.root.cluster.links import WorkerLink
from hearth.root.cluster.streaming import STALL_SECONDS, LoadEvent
from hearth.root.planning.plan import Plan, Slice
from hearth.v1 import worker_pb2
from hearth.worker.packing import ShardFiller
from hearth.worker.shard import NodeShard

Bytes = npt.NDArray[np.uint8]


class Loading:
    """One loading of a plan; call `run` once."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        on_progress: Callable[[int, LoadEvent], None],
        metrics: RootMetrics,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """on_progress: (number of the node, event), called in several threads."""
        self._stall_seconds = stall_seconds
        self._model = model
        self._plan = plan
        self._on_progress = on_progress
        self._metrics = metrics
        self._giving_up = threading.Event()
        self._links: Sequence[WorkerLink] = ()
        # See LoadDone.pages_epoch: of the workers that are loaded, in the order in which they were.
        self.pages_epochs: list[int] = []

    def run(
        self,
        own: NodeShard | Callable[[], NodeShard],
        links: Sequence[WorkerLink],
        begins: Sequence[Callable[[], worker_pb2.LoadBegin]],
        on_loaded: Callable[[WorkerLink], None],
    ) -> NodeShard:
        """Loads all shards; returns the root's.

        own: the root's shard if it is already loaded, else a function that makes an empty one.
        begins: for each link a function that makes its first message; called once the identities
        of the model's tensors are found, while the root's own shard loads.
        on_loaded: called as soon as a worker's shard is complete, in the thread that loaded it.

        The first error ends all other loads and is raised; a shard made by `own` is closed then.
        Raises ModelError if a file of the model changed meanwhile. The leases are the caller's to
        release.
        """
        self._links = tuple(links)
        if self.given_up:
            self.give_up()  # before there were links to end
        failure: BaseException | None = None
        with ThreadPoolExecutor(1 + len(links), "load") as pool:
            first = pool.submit(self._load_own, own)
            others = [
                pool.submit(self._load_worker, link, number, begin, on_loaded)
                for number, (link, begin) in enumerate(zip(links, begins, strict=True), 1)
            ]
            everyone: list[Future[Any]] = [first, *others]
            try:
                for future in as_completed(everyone):
                    failure = failure or future.exception()
                    if failure is not None:
                        self.give_up()
            except BaseException as interrupt:
                # End the threads, because the pool waits for them.
                self.give_up()
                failure = interrupt
        if failure is None:
            failure = self._changed()
        if failure is not None:
            if first.exception() is None and first.result() is not own:
                # The error holds this frame, and this the shard.
                first.result().close()
            raise failure
        return first.result()

    @property
    def given_up(self) -> bool:
        """True once `give_up` was called: later errors follow from it."""
        return self._giving_up.is_set()

    def give_up(self) -> None:
        """Ends `run`, or keeps it from beginning; returns at once. May be called by any thread."""
        self._giving_up.set()
        for link in self._links:
            link.fail(_cancelled())

    def _load_own(self, own: NodeShard | Callable[[], NodeShard]) -> NodeShard:
        if isinstance(own, NodeShard):
            return own  # kept after a worker was lost
        shard = own()
        node = self._plan.nodes[0]
        manifest = [wire.slice_entry(part, b"") for part in node.slices]  # not cached
        filler = ShardFiller(shard, manifest)
        loaded = 0
        try:
            for part, entry in zip(node.slices, manifest, strict=True):
                if self._giving_up.is_set():
                    raise _cancelled()
                filler.fill(entry, partial(self._read, part))
                loaded += part.size_bytes
                self._metrics.weights("local", part.size_bytes)
                self._on_progress(0, LoadEvent(node.weight_bytes, 0, loaded))
            filler.finish()
        except BaseException:
            filler.close()  # first: it may still be packing a block
            shard.close()
            raise
        filler.close()
        return shard

    def _load_worker(
        self,
        link: WorkerLink,
        number: int,
        begin: Callable[[], worker_pb2.LoadBegin],
        on_loaded: Callable[[WorkerLink], None],
    ) -> None:
        node = self._plan.nodes[number]
        if not self._model.identify(self._giving_up.is_set):
            raise _cancelled()
        done = link.load(
            begin(),
            lambda index, first, last: self._read(node.slices[index], first, last),
            lambda event: self._on_progress(number, event),
            self._stall_seconds,
        )
        self.pages_epochs.append(done.pages_epoch)
        self._metrics.weights("network", done.network_bytes)
        self._metrics.weights("cache", done.cache_bytes)
        total = node.weight_bytes
        self._on_progress(number, LoadEvent(total, done.network_bytes, done.cache_bytes))
        on_loaded(link)

    def _changed(self) -> BaseException | None:
        """The error where a file of the model is not what was read at first."""
        try:
            if not self._model.check_unchanged(self._giving_up.is_set):
                return _cancelled()
        except ModelError as error:
            return error
        return None

    def _read(self, part: Slice, first: int, last: int) -> Bytes:
        """Rows [first, last) of a slice."""
        read = self._model.read
        pieces = [read(part.tensor, part.kind, *piece) for piece in part.pieces(first, last)]
        # Parts of a vector lie behind each other, those of a matrix below each other.
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, int(part.vector))


def _cancelled() -> HearthError:
    return HearthError(Reason.CANCELLED, "loading was cancelled")
