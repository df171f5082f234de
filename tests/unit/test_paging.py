"""The engine with pages on disk: others go on meanwhile, and what does not come is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from serving_fakes import ByteTokenizer, FakeRunner, Greedy, expected

from hearth.common.errors import Code, HearthError, Reason
from hearth.root.engine import paging
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta, Done
from hearth.root.engine.params import GenerateParams
from hearth.root.scheduling.batch import Limits
from hearth.root.scheduling.disk import Move

LIMITS = Limits(context_size=512, max_pages=64, page_size=4, max_step_tokens=16)
FIRST = tuple(b"Tell me a story about a hearth, please.")
OTHER = tuple(b"Something else, which nobody asked before.")


@dataclass
class FakeArchive:
    """A disk of the pages of a FakeRunner. Nothing comes before `polls` were asked for it."""

    runner: FakeRunner
    kept: dict[bytes, list[int | None]] = field(default_factory=dict)
    secret: bytes = b"s" * 32
    polls: float = 0
    asked: int = 0
    full: bool = False
    failure: HearthError | None = None

    def has(self, name: bytes, snapshot: bool) -> bool:
        return not snapshot and name in self.kept

    def drop(self, name: bytes) -> None:
        self.kept.pop(name, None)

    def room(self, seconds: float = 0.0) -> bool:
        return not self.full

    def store(self, moves: Sequence[Move]) -> None:
        for move in moves:
            assert move.page is not None
            self.kept[move.name] = list(self.runner.cache[move.page])

    def fetch(self, moves: Sequence[Move], seconds: float, reset: bool) -> list[bool | None]:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if reset:
            self.runner.tables.forget(True, ())
        self.asked += 1
        if self.asked <= self.polls:
            return [None] * len(moves)
        for move in moves:
            assert move.page is not None
            self.runner.cache[move.page] = list(self.kept[move.name])
            self.runner.tables.fill(move.page)
        return [True] * len(moves)


@contextmanager
def engine(archive: FakeArchive, pause_seconds: float = 0.0) -> Iterator[Engine]:
    made = Engine(
        archive.runner,
        ByteTokenizer(),
        LIMITS,
        sampler_factory=Greedy,
        archive=archive,
        pause_seconds=pause_seconds,
    )
    made.start()
    try:
        yield made
    finally:
        assert made.stop(finish=False)


def answer(e: Engine, ids: tuple[int, ...]) -> tuple[list[int], int]:
    tokens: list[int] = []
    for event in e.generate(GenerateParams(ids, 8, ignore_eos=True)):
        if isinstance(event, Done):
            return tokens, event.usage.cached_tokens
        assert isinstance(event, Delta)
        tokens += event.token_ids
    raise AssertionError("no end")


def kept() -> dict[bytes, list[int | None]]:
    """The disk after an answer to FIRST: of the last page too, whose engine has ended."""
    archive = FakeArchive(FakeRunner())
    with engine(archive) as e:
        assert answer(e, FIRST) == (expected(FIRST, 8), 0)
    assert len(archive.kept) == (len(FIRST) + 7) // 4
    return archive.kept


def test_a_new_engine_fetches_what_an_old_one_stored() -> None:
    archive = FakeArchive(FakeRunner(), kept(), polls=3)
    with engine(archive) as e:
        assert answer(e, FIRST) == (expected(FIRST, 8), 36)
    # Asked for again until they came, and not once more.
    assert archive.asked == 4
    assert sum(batch.rows for batch in archive.runner.batches) == len(FIRST) + 7 - 36


def test_others_go_on_while_pages_come() -> None:
    archive = FakeArchive(FakeRunner(), kept(), polls=float("inf"))
    with engine(archive) as e, ThreadPoolExecutor(1) as pool:
        with e.held():
            waiting = pool.submit(answer, e, FIRST)
            while not e.commands:
                pass
        assert answer(e, OTHER) == (expected(OTHER, 8), 0)
        assert not waiting.done()
        archive.polls = 0
        assert waiting.result() == (expected(FIRST, 8), 36)


def test_pages_that_do_not_come_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "_FETCH_SECONDS", 0.0)
    archive = FakeArchive(FakeRunner(), kept(), polls=float("inf"))
    with engine(archive) as e:
        assert answer(e, FIRST) == (expected(FIRST, 8), 0)


def test_a_disk_without_room_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "_END_SECONDS", 0.0)
    archive = FakeArchive(FakeRunner(), full=True)
    with engine(archive) as e:
        assert answer(e, FIRST) == (expected(FIRST, 8), 0)
        assert answer(e, FIRST) == (expected(FIRST, 8), 36)
    assert not archive.kept


def test_a_worker_that_is_lost_meanwhile_pauses_requests() -> None:
    lost = HearthError(Reason.WORKER_LOST, "worker a was lost", {}, Code.UNAVAILABLE)
    archive = FakeArchive(FakeRunner(), kept(), failure=lost)
    with engine(archive, pause_seconds=60) as e, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(answer, e, FIRST)
        while archive.failure is not None:
            pass
        e.resume()
        assert waiting.result() == (expected(FIRST, 8), 36)


def test_a_cluster_that_is_lost_meanwhile_ends_requests_that_cannot_wait() -> None:
    lost = HearthError(Reason.WORKER_LOST, "worker a was lost", {}, Code.UNAVAILABLE)
    archive = FakeArchive(FakeRunner(), kept(), failure=lost)
    with engine(archive) as e, pytest.raises(HearthError, match="worker a was lost"):
        answer(e, FIRST)
