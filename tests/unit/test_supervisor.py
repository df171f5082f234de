"""The supervisor with a cluster, an engine and workers that are values: no gRPC, no model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hearth.common.errors import HearthError, Reason
from hearth.root import draining
from hearth.root import supervisor as supervisor_module
from hearth.root.cluster.asking import Asker
from hearth.root.cluster.cluster import Cluster, Listener
from hearth.root.engine.engine import Engine
from hearth.root.membership.events import Described, Event, Refused, Unreachable
from hearth.root.membership.membership import Membership
from hearth.root.membership.replay import replay
from hearth.root.planning.blueprint import LeftOut
from hearth.root.scheduling.batch import Limits
from hearth.root.settings import ClusterSettings, Joining
from hearth.root.supervisor import Supervisor
from hearth.v1 import root_pb2

LIMITS = Limits(context_size=16, max_pages=16, page_size=4, max_step_tokens=8, max_running=4)


def error(reason: str, message: str, **metadata: object) -> HearthError:
    return HearthError(reason, message, metadata)


class FakeCluster:
    """Forms as the test says, and keeps what it was asked to do."""

    pages_kept = False

    def __init__(self, *workers: str) -> None:
        self.settings = ClusterSettings(workers=workers)
        self.forgotten: list[str] = []
        self.blueprint = SimpleNamespace(
            most_workers=3,
            misfit=lambda facts: None,
            left_out=lambda facts: None,
            forget=self.forgotten.append,
        )
        # Left out of every formation.
        self.slow: set[str] = set()
        self.root_id = "root"
        self.lost: HearthError | None = HearthError(Reason.CLUSTER_NOT_READY, "not formed")
        self.formed: list[tuple[str, ...]] = []
        self.dissolved = 0
        self.interrupted = False
        # Raised by the next attempts to form, one each.
        self.failures: list[Exception] = []
        self.waiting: list[str | None] = []
        self.serving = threading.Semaphore(0)
        self.listener: Listener | None = None

    def listen(self, listener: Listener) -> None:
        self.listener = listener

    @property
    def workers(self) -> tuple[str, ...]:
        return self.formed[-1]

    def form(self, workers: tuple[str, ...]) -> Limits:
        if self.failures:
            raise self.failures.pop(0)
        self.formed.append(tuple(worker for worker in workers if worker not in self.slow))
        self.lost = None
        self.serving.release()
        return LIMITS

    def dissolve(self) -> None:
        self.dissolved += 1

    def interrupt(self) -> None:
        self.interrupted = True

    def show(self, known: object, why: str | None = None) -> None:
        self.waiting.append(why)

    def status(self) -> root_pb2.ClusterStatus:
        return root_pb2.ClusterStatus(epoch=len(self.formed))

    def lose(self, error: HearthError) -> None:
        self.lost = error
        assert self.listener is not None
        self.listener.cluster_lost(error)


class FakeEngine:
    busy = False

    def __init__(self) -> None:
        self.suspended: list[HearthError] = []
        # At a start, before anything serves: the reasons that requests get.
        self.refused: list[HearthError] = []
        self.resumed: list[Limits | None] = []

    def suspend(self, error: HearthError, *, refuse: bool = False) -> threading.Event:
        (self.refused if refuse else self.suspended).append(error)
        done = threading.Event()
        done.set()
        return done

    def resume(self, limits: Limits | None = None, pages_kept: bool = False) -> None:
        self.resumed.append(limits)


class Workers:
    """Answers questions at once: by address, an error, or None for a worker that is free."""

    def __init__(self, **answers: HearthError | None) -> None:
        self.answers = {f"{name}:1": answer for name, answer in answers.items()}
        self._answered: Callable[[Event, HearthError | None], None] | None = None

    def __call__(self, root_id: str, security: object, answered: Any) -> Asker:
        self._answered = answered
        return cast("Asker", self)

    def ask(self, address: str) -> None:
        assert self._answered is not None
        error = self.answers[address]
        if error is None:
            self._answered(Described(0.0, address, address[0], address, 1 << 30), None)
        elif error.reason == Reason.WORKER_UNREACHABLE:
            self._answered(Unreachable(0.0, address, error.message), error)
        else:
            self._answered(Refused(0.0, address, error.message), error)

    def stop(self) -> None:
        pass


def supervisor(
    cluster: FakeCluster, engine: FakeEngine, workers: Workers, joining: Joining | None = None
) -> Supervisor:
    return Supervisor(
        cast("Cluster", cluster), cast("Engine", engine), joining or Joining(), workers
    )


def test_a_start_with_all_workers() -> None:
    cluster, engine = FakeCluster("a:1", "b:1"), FakeEngine()
    running = supervisor(cluster, engine, Workers(a=None, b=None))
    running.form_first()
    assert cluster.formed == [("a:1", "b:1")]
    assert engine.resumed == [LIMITS]
    running.stop()
    assert cluster.interrupted


def test_a_listed_worker_that_can_never_be_used_ends_the_start() -> None:
    foreign = error(Reason.PROTOCOL_VERSION, "it speaks version 9")
    running = supervisor(FakeCluster("a:1"), FakeEngine(), Workers(a=foreign))
    with pytest.raises(HearthError, match="version 9") as raised:
        running.form_first()
    assert raised.value is foreign
    running.stop()


def test_a_listed_worker_that_is_absent_ends_the_start_after_a_while() -> None:
    away = error(Reason.WORKER_UNREACHABLE, "a:1 cannot be reached")
    joining = Joining(join_seconds=0.1)
    running = supervisor(FakeCluster("a:1"), FakeEngine(), Workers(a=away), joining)
    with pytest.raises(HearthError, match=r"a:1 cannot be reached \(waited 0.1 s: see --join"):
        running.form_first()
    running.stop()


def _levels(caplog: pytest.LogCaptureFixture) -> set[int]:
    return {r.levelno for r in caplog.records if "the cluster is not ready" in r.message}


def test_a_normal_start_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        running = supervisor(FakeCluster("a:1", "b:1"), FakeEngine(), Workers(a=None, b=None))
        running.form_first()
    assert _levels(caplog) == set()
    running.stop()


class Silent(Workers):
    """Questions whose answers never come."""

    def ask(self, address: str) -> None:
        pass


@pytest.mark.parametrize("workers", [Silent(), Workers(a=error(Reason.WORKER_BUSY, "busy"))])
def test_a_start_warns_of_a_reason_and_of_silence(
    workers: Workers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(workers, Silent):
        monkeypatch.setattr(supervisor_module, "_QUIET_SECONDS", 0.1)
    running = supervisor(FakeCluster("a:1"), FakeEngine(), workers, Joining(join_seconds=1.0))
    with caplog.at_level(logging.INFO), pytest.raises(HearthError):
        running.form_first()
    assert _levels(caplog) == {logging.WARNING}
    running.stop()


def test_the_refusal_of_a_worker_that_is_forgotten_is_forgotten() -> None:
    workers = Workers(a=None, c=error(Reason.WORKER_BUSY, "busy"))
    running = supervisor(FakeCluster("a:1"), FakeEngine(), workers)
    running.form_first()
    for listing, kept in ((["c:1"], {"c:1"}), ([], set())):
        running._found("dns", listing)
        for _ in range(2):  # the event; the answer
            running._await_event(0.0)
            running._look()
        assert running._refusals.keys() == kept
    running.stop()


def test_nobody_comes() -> None:
    joining = Joining(min_workers=1, join_seconds=0.1)
    running = supervisor(FakeCluster(), FakeEngine(), Workers(), joining)
    with pytest.raises(HearthError, match="0 of 1 workers are there"):
        running.form_first()
    running.stop()


def test_a_model_without_room_and_without_workers_is_an_error_at_once() -> None:
    engine = FakeEngine()
    cluster = FakeCluster()
    cluster.blueprint.misfit = lambda facts: (0, "the root has no room")
    running = supervisor(cluster, engine, Workers(), Joining(join_seconds=3600))
    with pytest.raises(HearthError, match="no room") as caught:
        running.form_first()
    assert caught.value.reason == "OUT_OF_MEMORY"
    running.stop()


def test_a_start_says_whom_it_waits_for_and_how_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_QUIET_SECONDS", 0.0)
    away = error(Reason.WORKER_UNREACHABLE, "it cannot be reached")
    engine = FakeEngine()
    cluster = FakeCluster("a:1", "b:1")
    running = supervisor(cluster, engine, Workers(a=away, b=away), Joining(join_seconds=1.0))
    with caplog.at_level(logging.INFO), pytest.raises(HearthError) as caught:
        running.form_first()
    (line,) = (r.message for r in caplog.records if "--join-seconds" in r.message)
    assert line == "waiting for a:1, b:1 (1 s left: --join-seconds)"
    for name in ("a:1", "b:1", "waited 1 s"):
        assert name in caught.value.message
    assert engine.refused[-1].message == "waiting for a:1, b:1"
    running.stop()


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    for joining, problem in (
        (Joining(min_workers=-1), "less than 0"),
        (Joining(min_workers=4), "more than the 3 workers"),
        (Joining(story=str(tmp_path)), f"--story {tmp_path} cannot be written"),
    ):
        with pytest.raises(HearthError, match=problem) as raised:
            supervisor(FakeCluster(), FakeEngine(), Workers(), joining)
        assert raised.value.reason == "BAD_SETTING"


def test_a_forming_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    cluster, engine = FakeCluster("a:1"), FakeEngine()
    cluster.failures = [
        error(Reason.WORKER_BUSY, "a step has not ended", worker="a:1"),
        error(Reason.DEADLINE, "too slow", worker="a:1"),
    ]
    running = supervisor(cluster, engine, Workers(a=None), Joining(wait_seconds=1))
    running.form_first()
    assert cluster.formed == [("a:1",)]
    assert "the cluster was not formed: a step has not ended" in caplog.text
    running.stop()


def test_only_two_that_do_not_reach_each_other_are_apart(tmp_path: Path) -> None:
    """Other errors name as `peer` what did not answer the root."""
    cluster = FakeCluster("a:1", "b:1")
    names = {"worker": "a:1", "peer": "worker a (a:1)"}
    cluster.failures = [HearthError(Reason.UNREACHABLE, "gone", names)]
    joining = Joining(min_workers=1, story=str(tmp_path / "story"))
    running = supervisor(cluster, FakeEngine(), Workers(a=None, b=None), joining)
    running.form_first()
    running.stop()
    (membership,) = replay((tmp_path / "story").read_text().splitlines())
    (failed,) = [e for e in membership.story() if type(e.event).__name__ == "FormFailed"]
    assert [(move.address, move.after.name) for move in failed.moves][-1] == ("a:1", "UNREACHABLE")


@pytest.fixture
def serving() -> Any:
    """A cluster of a:1 and b:1 that a supervisor keeps, in its own thread."""
    cluster, engine, workers = FakeCluster("a:1", "b:1"), FakeEngine(), Workers(a=None, b=None)
    running = supervisor(cluster, engine, workers, Joining(wait_seconds=0.1))
    running.form_first()
    assert cluster.serving.acquire(timeout=30)
    running.start()
    yield SimpleNamespace(supervisor=running, cluster=cluster, engine=engine, workers=workers)
    running.stop()


def test_after_a_loss_requests_wait_and_the_cluster_is_formed_again(serving: Any) -> None:
    lost = error(Reason.WORKER_LOST, "b was lost", worker="b:1")
    serving.workers.answers["b:1"] = error(Reason.WORKER_UNREACHABLE, "b:1 is silent")
    serving.cluster.lose(lost)
    assert serving.cluster.serving.acquire(timeout=30)
    assert serving.cluster.formed == [("a:1", "b:1"), ("a:1",)]
    assert serving.cluster.dissolved == 1
    assert serving.engine.suspended[0] is lost
    assert len(serving.engine.resumed) <= 2


def test_a_worker_is_taken_out_and_the_caller_learns_when(serving: Any) -> None:
    status = serving.supervisor.drain("b:1").result(30)
    assert status.epoch == 2
    assert serving.cluster.formed[-1] == ("a:1",)
    assert "is being divided again" in serving.engine.suspended[-1].message
    with pytest.raises(HearthError, match="no worker is called 'c'"):
        serving.supervisor.drain("c").result(30)


def room_for(workers: int) -> Callable[[list[object]], tuple[int, str] | None]:
    """The model fits where there are so many workers."""
    return lambda facts: None if len(facts) >= workers else (0, f"{len(facts)} of {workers}")


def test_of_two_drains_at_once_each_has_its_own_answer(serving: Any) -> None:
    serving.cluster.blueprint.misfit = room_for(1)
    first, second = serving.supervisor.drain("a:1"), serving.supervisor.drain("b:1")
    with pytest.raises(HearthError, match=r"b .b:1. cannot be taken out: 0 of 1") as raised:
        second.result(30)
    assert raised.value.reason == Reason.OUT_OF_MEMORY
    assert first.result(30).epoch == 2
    assert serving.cluster.formed[1:] == [("b:1",)]


def test_undoing_is_answered_when_the_worker_is_in(serving: Any) -> None:
    assert serving.supervisor.drain("b:1").result(30).epoch == 2
    assert serving.supervisor.drain("b:1", undo=True).result(30).epoch == 3
    assert serving.cluster.formed[-1] == ("a:1", "b:1")


@pytest.mark.parametrize("reason", [Reason.WORKER_UNREACHABLE, Reason.WORKER_BUSY])
def test_undoing_for_a_worker_that_cannot_be_used_fails_with_its_reason(
    serving: Any, reason: Reason
) -> None:
    serving.supervisor.drain("b:1").result(30)
    serving.workers.answers["b:1"] = error(reason, "the answer of b")
    with pytest.raises(HearthError, match="cannot be used now: the answer of b") as raised:
        serving.supervisor.drain("b:1", undo=True).result(30)
    assert raised.value.reason == reason


def test_undoing_for_a_worker_without_the_memory_fails(serving: Any) -> None:
    serving.supervisor.drain("b:1").result(30)
    serving.cluster.blueprint.misfit = lambda facts: (2, "too little") if len(facts) > 1 else None
    with pytest.raises(HearthError, match="it lacks memory: too little") as raised:
        serving.supervisor.drain("b:1", undo=True).result(30)
    assert raised.value.reason == Reason.OUT_OF_MEMORY


def test_a_worker_that_is_let_in_and_not_needed_is_ready() -> None:
    cluster = FakeCluster("a:1", "b:1")
    cluster.blueprint.most_workers = 2
    joining = Joining(min_workers=1)
    running = supervisor(cluster, FakeEngine(), Workers(a=None, b=None, c=None), joining)
    running.form_first()
    running.start()
    running._found("dns", ["c:1"])
    running.drain("b:1").result(30)
    assert cluster.serving.acquire(timeout=30)
    while cluster.formed[-1] != ("a:1", "c:1"):
        assert cluster.serving.acquire(timeout=30)
    assert running.drain("b:1", undo=True).result(30).epoch == len(cluster.formed)
    assert cluster.formed[-1] == ("a:1", "c:1")
    running.stop()


def test_a_slow_worker_is_let_in_and_left_out_again() -> None:
    """`undrain` has it measured again."""
    cluster = FakeCluster("a:1", "b:1")
    cluster.slow = {"b:1"}
    slow = LeftOut(("b:1",), "too slow")
    cluster.blueprint.left_out = lambda facts: (
        slow if facts and facts[-1].address == "b:1" else None
    )
    running = supervisor(cluster, FakeEngine(), Workers(a=None, b=None), Joining())
    running.form_first()
    running.start()
    status = running.drain("b:1", undo=True).result(30)
    assert cluster.forgotten == ["b:1"]
    assert (status.epoch, cluster.formed) == (1, [("a:1",)])
    peer = running._membership.called("b:1")
    assert (peer.spare, peer.slow, peer.reason) == (True, True, "too slow")
    running.stop()


def test_a_call_that_is_overtaken_by_the_opposite_one_fails(serving: Any) -> None:
    forming, goes_on = threading.Event(), threading.Event()
    form = serving.cluster.form

    def slowly(workers: tuple[str, ...]) -> Limits:
        forming.set()
        assert goes_on.wait(30)
        return cast("Limits", form(workers))

    serving.cluster.form = slowly
    out = serving.supervisor.drain("b:1")
    assert forming.wait(30)
    back = serving.supervisor.drain("b:1", undo=True)
    again = serving.supervisor.drain("b:1")
    goes_on.set()
    with pytest.raises(HearthError, match="was taken out, or stops") as raised:
        back.result(30)
    assert raised.value.reason == Reason.CANCELLED
    assert out.result(30).epoch == again.result(30).epoch == 2


def test_a_drain_that_never_ends_is_bounded(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its caller's deadline, which cancels the future; or by a limit."""
    serving.supervisor.drain("b:1").result(30)
    serving.engine.busy = True
    left = serving.supervisor.drain("b:1", undo=True)
    assert left.cancel()
    monkeypatch.setattr(draining, "LIMIT_SECONDS", 0.0)
    with pytest.raises(HearthError, match="was not let in within 0 s") as raised:
        serving.supervisor.drain("b:1", undo=True).result(30)
    assert raised.value.reason == Reason.DEADLINE
    assert serving.supervisor._drains._waiting == []


def test_no_drain_is_without_an_answer_after_a_stop() -> None:
    cluster = FakeCluster("a:1", "b:1")
    running = supervisor(cluster, FakeEngine(), Workers(a=None, b=None))
    running.form_first()
    queued = running.drain("b:1")  # the supervisor's thread was never started
    running.stop()
    for answer in (queued, running.drain("b:1")):
        with pytest.raises(HearthError) as raised:
            answer.result(30)
        assert raised.value.reason == Reason.SHUTTING_DOWN


def test_a_mistake_while_draining_is_the_caller_s_answer(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Membership, event: Event) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Membership, "handle", broken)
        with pytest.raises(ZeroDivisionError):
            serving.supervisor.drain("b:1").result(30)
    assert serving.supervisor.drain("b:1").result(30).epoch == 2


def test_a_worker_that_is_about_to_stop_is_left_out(serving: Any) -> None:
    serving.workers.answers["b:1"] = error(Reason.WORKER_UNREACHABLE, "b:1 is silent")
    serving.supervisor.worker_leaving("b:1")
    assert serving.cluster.serving.acquire(timeout=30)
    assert serving.cluster.formed[-1] == ("a:1",)


def test_a_mistake_is_logged_and_the_supervisor_goes_on(
    serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    show, logged = serving.cluster.show, threading.Event()

    def broken(known: object, why: str | None = None) -> None:
        serving.cluster.show = show
        logged.set()
        raise ZeroDivisionError

    serving.cluster.show = broken
    with caplog.at_level(logging.ERROR):
        serving.supervisor.drain("b:1", True).result(30)
        assert logged.wait(30)
        assert serving.supervisor.drain("b:1").result(30).epoch == 2
    assert "supervisor: unexpected error" in caplog.text
