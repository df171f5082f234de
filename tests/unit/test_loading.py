"""Loading that fails: memory is freed, and every stream ends at once."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import RootMetrics
from hearth.converter import Model, open_model
from hearth.root.cluster.cluster import Cluster
from hearth.root.cluster.links import WorkerLink
from hearth.root.cluster.loading import Loading
from hearth.root.scheduling.batch import Batch
from hearth.root.settings import ClusterSettings
from hearth.v1 import worker_pb2
from hearth.worker.shard import NodeShard

ADDRESS = "127.0.0.1:1"
DAMAGED = HearthError(Reason.MODEL_ERROR, "the file is damaged")


@pytest.fixture
def model() -> Iterator[Model]:
    with open_model("demo") as model:
        yield model


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Weak references to the memory of every shard made from now on."""
    made: list[weakref.ref[Any]] = []
    make = NodeShard.__init__

    def remember(shard: NodeShard, *arguments: Any, **options: Any) -> None:
        make(shard, *arguments, **options)
        made.append(weakref.ref(shard._shard))

    monkeypatch.setattr(NodeShard, "__init__", remember)
    return made


def damage(model: Model, monkeypatch: pytest.MonkeyPatch, reads: int) -> None:
    """The model's file cannot be read any more after `reads` reads."""
    read = model.read
    count = 0

    def damaged(*arguments: Any) -> npt.NDArray[np.uint8]:
        nonlocal count
        count += 1
        if count > reads:
            raise HearthError(DAMAGED.reason, DAMAGED.message)
        return read(*arguments)

    monkeypatch.setattr(model, "read", damaged)


def test_a_failed_loading_frees_the_shard(
    model: Model, monkeypatch: pytest.MonkeyPatch, shards: list[weakref.ref[Any]]
) -> None:
    """Even if the error is kept, whose traceback holds the frames that held the shard."""
    damage(model, monkeypatch, 3)
    cluster = Cluster(model, ClusterSettings(context=64))
    with pytest.raises(HearthError, match=DAMAGED.message) as error:
        cluster.form()
    gc.collect()
    assert error.value.__traceback__ is not None
    assert [shard() for shard in shards] == [None]
    cluster.close()


def test_the_kept_error_holds_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(model, monkeypatch, 3)
    cluster = Cluster(model, ClusterSettings(context=64))
    with pytest.raises(HearthError, match=DAMAGED.message):
        cluster.form()
    with pytest.raises(HearthError, match=DAMAGED.message):
        cluster.submit(cast("Batch", None)).result()
    assert holds_nothing(cluster.lost)
    cluster.close()


def holds_nothing(error: HearthError | None) -> bool:
    assert error is not None
    return (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_a_complete_shard_is_freed_when_a_worker_fails(
    model: Model, monkeypatch: pytest.MonkeyPatch, shards: list[weakref.ref[Any]]
) -> None:
    complete = threading.Event()

    def load(link: WorkerLink, *arguments: object) -> None:
        assert complete.wait(30)
        raise HearthError(Reason.OUT_OF_MEMORY, "the worker has no memory")

    load_own = Loading._load_own

    def loaded(loading: Loading, own: Callable[[], NodeShard]) -> NodeShard:
        shard = load_own(loading, own)
        complete.set()
        return shard

    monkeypatch.setattr(WorkerLink, "load", load)
    monkeypatch.setattr(Loading, "_load_own", loaded)
    monkeypatch.setattr(WorkerLink, "describe", lambda *arguments: answer())
    monkeypatch.setattr(WorkerLink, "release", lambda *arguments: None)
    cluster = Cluster(model, ClusterSettings((ADDRESS,), context=64))
    with pytest.raises(HearthError, match="the worker has no memory") as error:
        cluster.form()
    gc.collect()
    assert error.value.__traceback__ is not None
    assert [shard() for shard in shards] == [None]
    cluster.close()


def answer() -> worker_pb2.DescribeResponse:
    """Of a worker with memory."""
    described = worker_pb2.DescribeResponse()
    described.node.name = "cellar"
    described.node.memory_available_bytes = 1 << 34
    return described


@pytest.mark.parametrize("early", [False, True], ids=["while it runs", "before it runs"])
def test_giving_up_ends_all_streams_and_waits_for_none(
    model: Model, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """The caller may be a callback of gRPC's; the leases are released after, in parallel."""
    calls: list[str] = []
    fail = WorkerLink.fail

    def failed(link: WorkerLink, error: HearthError) -> None:
        calls.append(f"fail {link.address}")
        fail(link, error)

    monkeypatch.setattr(WorkerLink, "fail", failed)
    monkeypatch.setattr(WorkerLink, "release", lambda link, lease: calls.append("release"))
    cluster = Cluster(model, ClusterSettings((ADDRESS,)))
    links = [WorkerLink(ADDRESS)]
    loading = Loading(model, cluster.plan, lambda number, event: None, RootMetrics())

    def give_up() -> NodeShard:
        if not early:
            loading.give_up()
        assert calls, "the streams go on"
        raise HearthError(Reason.CANCELLED, "given up")

    if early:
        loading.give_up()
    with pytest.raises(HearthError) as error:
        loading.run(give_up, links, [worker_pb2.LoadBegin], lambda link: None)
    assert error.value.reason == Reason.CANCELLED
    assert set(calls) == {f"fail {ADDRESS}"}
    links[0].close()
    cluster.close()
