"""KV pages on the nodes' disks, as the engine uses them: names, stores and fetches.

Each node keeps its own part of a page, under a name that the root gives. The files of the root's
own part are the index: a page that the root has is asked for on every node, and is missing if one
of them has lost its part. The secret of the prefix index is beside them, so that the same prefix
has the same name after a restart.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from hearth.common import system
from hearth.common.metrics import Metrics
from hearth.converter import Model
from hearth.converter.fingerprint import fingerprint
from hearth.root.cluster.links import WorkerLink, violation
from hearth.root.planning.plan import Plan
from hearth.root.scheduling.disk import Move
from hearth.v1 import common_pb2, worker_pb2
from hearth.worker.page_files import PageFiles
from hearth.worker.page_mover import MISSING, PENDING, PageMover, State, node_context
from hearth.worker.page_tables import PageTables
from hearth.worker.shard import NodeShard

log = logging.getLogger(__name__)

_SECRET, _SECRET_BYTES = "prefix.secret", 32

Shards = Sequence[common_pb2.ShardConfig]
T = TypeVar("T")


class Between(Protocol):
    """Calls a function between two steps, with the lock of a step."""

    def __call__(self, act: Callable[[], T], /) -> T: ...


class Archive:
    """The root's page files, and its secret. Thread-safe."""

    def __init__(self, folder: Path, limit: int | None, metrics: Metrics, between: Between) -> None:
        """limit: bytes of the root's own files. Raises HearthError BAD_SETTING."""
        self.files = PageFiles(folder, limit, metrics)
        self.secret = self.files.secret(_SECRET, _SECRET_BYTES)
        self._between = between
        self._lock = threading.Lock()
        # Of the plan that serves.
        self._pages: PlanPages | None = None

    def store(self, moves: Sequence[Move]) -> None:
        """See PlanPages; nothing where no plan serves. Raises HearthError as a step does."""
        pages = self._plan()
        if pages is not None:
            self._between(lambda: pages.store(moves))

    def fetch(self, moves: Sequence[Move], seconds: float, reset: bool) -> list[bool | None]:
        """See PlanPages. Raises HearthError as a step does."""
        pages = self._plan()
        if pages is None:
            return [False] * len(moves)
        return self._between(lambda: pages.fetch(moves, seconds, reset))

    def use(self, pages: "PlanPages | None") -> None:
        """Looks names up in this plan's pages from now on; None: nothing is found."""
        with self._lock:
            self._pages = pages

    def has(self, name: bytes, snapshot: bool) -> bool:
        """True if the root has its part of a page or a snapshot."""
        pages = self._plan()
        return pages is not None and pages.file_name(name, snapshot) in self.files

    def drop(self, name: bytes) -> None:
        """Removes the root's part of a page and of its snapshot: they are not found any more."""
        pages = self._plan()
        if pages is not None:
            for snapshot in (False, True):
                self.files.drop(pages.file_name(name, snapshot))

    def room(self, seconds: float = 0.0) -> bool:
        """True if another page can be stored; waits for that."""
        return self.files.wait_room(seconds) if seconds else self.files.room()

    def close(self) -> None:
        """Writes what is queued, for a few seconds, and ends."""
        self.files.close()

    def _plan(self) -> "PlanPages | None":
        with self._lock:
            return self._pages


class PlanPages:
    """Moves pages on all nodes of a formation; used between two steps."""

    def __init__(
        self,
        files: PageFiles,
        identity: bytes,
        context: bytes,
        shard: NodeShard,
        tables: PageTables,
        links: Sequence[WorkerLink],
    ) -> None:
        """identity: see `identity_of`. context: of the root's own part (page_mover.py)."""
        self._identity = identity
        self._links = links
        self._tables = tables
        self._mover = PageMover(shard, tables, files, context)
        # By name: the nodes, as ranks, that have not copied their part yet.
        self._pending: dict[bytes, set[int]] = {}

    def file_name(self, name: bytes, snapshot: bool) -> bytes:
        """The name of the root's file."""
        return self._mover.file_name(self._name(name, snapshot))

    def store(self, moves: Sequence[Move]) -> None:
        """Lets every node copy its part; it is written in the background."""
        items = [self._item(move) for move in moves]
        request = worker_pb2.ForwardRequest(page_store=worker_pb2.PageStore(items=items))
        for link in self._links:
            link.send(request)
        self._mover.store(items)

    def fetch(self, moves: Sequence[Move], seconds: float, reset: bool) -> list[bool | None]:
        """Lets every node fetch its part. Of each: True if all have it, False if one has not.

        None: not yet; ask again. seconds: how long nodes may wait for the first. reset: the nodes
        forget their page tables before. Raises HearthError if a worker is lost.
        """
        ranks = range(1 + len(self._links))
        items = {item.name: item for item in map(self._item, moves)}
        # Those of earlier calls that are not asked for any more are forgotten.
        self._pending = {name: self._pending.get(name, set(ranks)) for name in items}
        asked = [[name for name in items if rank in self._pending[name]] for rank in ranks]
        for link, names in zip(self._links, asked[1:], strict=True):
            fetch = worker_pb2.PageFetch(
                items=[items[name] for name in names],
                wait_ms=int(seconds * 1000),
                reset=reset,
            )
            link.send(worker_pb2.ForwardRequest(page_fetch=fetch))
        if reset:
            self._tables.forget(True, ())
        found: list[Sequence[State]] = [
            self._mover.fetch([items[name] for name in asked[0]], seconds)
        ]
        for link, names in zip(self._links, asked[1:], strict=True):
            found.append(_states(link, len(names)))
        missing: set[bytes] = set()
        for rank, names, states in zip(ranks, asked, found, strict=True):
            for name, state in zip(names, states, strict=True):
                if state != PENDING:
                    self._pending[name].discard(rank)
                if state == MISSING:
                    missing.add(name)
        return [
            False if name in missing else None if self._pending[name] else True for name in items
        ]

    def _item(self, move: Move) -> worker_pb2.StoredPage:
        name = self._name(move.name, move.snapshot is not None)
        if move.snapshot is not None:
            return worker_pb2.StoredPage(name=name, snapshot=move.snapshot, position=move.position)
        assert move.page is not None
        return worker_pb2.StoredPage(name=name, page=move.page)

    def _name(self, name: bytes, snapshot: bool) -> bytes:
        kind = b"snapshot" if snapshot else b"page"
        parts = (self._identity, kind, name)
        return fingerprint([b"first", *parts]) + fingerprint([b"second", *parts])


def identity_of(
    model: Model, plan: Plan, shards: Shards, sync_type: str, stop: Callable[[], bool]
) -> bytes | None:
    """A digest of what decides the values in the KV cache of any node: the model and its cut.

    shards: of all nodes, in rank order. Reads the whole model the first time (fingerprint.py). None
    if `stop` ended that.
    """
    if not model.identify(stop):
        return None
    parts: list[bytes | str | int] = [system.version(), sync_type]
    for name in sorted({part.tensor for node in plan.nodes for part in node.slices}):
        parts += [name, model.identity(name)]
    return fingerprint([*parts, *(node_context(shard, _NOWHERE, ()) for shard in shards)])


def stores_pages(links: Sequence[WorkerLink]) -> bool:
    """True if all workers keep pages on disk; else logs those that do not."""
    others = [link.name for link in links if not link.stores_pages]
    if others:
        log.warning(
            "KV pages on disk: not used, because %s runs without --kv-cache disk",
            ", ".join(others),
        )
    return not others


_NOWHERE = common_pb2.Placement()


def _states(link: WorkerLink, count: int) -> Sequence[State]:
    response = link.receive()
    states = response.pages_fetched.states
    if response.WhichOneof("message") != "pages_fetched" or len(states) != count:
        raise violation(link, f"expected the states of {count} pages")
    return states
