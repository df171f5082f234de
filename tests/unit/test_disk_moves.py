"""Pages between memory and disk as pure state: what is found holds the tokens that it stands for.

A model of the nodes' memory holds the tokens of each page, and of each snapshot. So a page with
other content is seen as such, whatever the order of steps, stores, fetches, losses and restarts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.root.scheduling.batch import Batch, Limits, Request
from hearth.root.scheduling.disk import MOST_FETCHES, Move
from hearth.root.scheduling.scheduler import Scheduler

PAGE = 4
LIMITS = Limits(
    context_size=64, max_pages=16, page_size=PAGE, max_step_tokens=12, max_running=3, max_waiting=50
)
RECURRENT = replace(LIMITS, stateful=True, most_drafts=0, snapshots=2)
Tokens = tuple[int, ...]


class FakeDisk:
    """The root's index and what nodes have on disk: tokens by name."""

    def __init__(self) -> None:
        self.secret = b"s" * 32
        self.index: dict[tuple[bytes, bool], Tokens] = {}
        # What a node has lost, though the root's index has it.
        self.lost: set[tuple[bytes, bool]] = set()

    def has(self, name: bytes, snapshot: bool) -> bool:
        return (name, snapshot) in self.index

    def drop(self, name: bytes) -> None:
        for snapshot in (False, True):
            self.index.pop((name, snapshot), None)


class Nodes:
    """A scheduler, and the content of pages, states and snapshots on its nodes."""

    def __init__(self, disk: FakeDisk, limits: Limits) -> None:
        self.disk = disk
        self.stateful = limits.stateful
        self.scheduler = Scheduler(limits, disk)
        self.pages: dict[int, Tokens] = {}
        self.snapshots: dict[int, Tokens] = {}
        self.states: dict[int, Tokens] = {}
        self.texts: dict[int, Tokens] = {}
        self.tables: dict[int, list[int]] = {}
        self.rows: dict[int, int] = {}
        self.cached: dict[int, int] = {}

    def submit(self, request: Request) -> None:
        self.scheduler.submit(request)
        self.texts[request.seq_id] = request.prompt
        self.rows[request.seq_id] = 0

    def step(self) -> bool:
        """One step, if any; whether there was one."""
        batch = self.scheduler.schedule()
        self.scheduler.check()
        if batch is None:
            return False
        if batch.reset:
            self.tables.clear()
        for ended in batch.ended:
            del self.tables[ended]
        self.compute(batch)
        outputs = {}
        for part in batch.sequences:
            if part.outputs:
                text = self.texts[part.seq_id]
                # The next token depends on all before: a wrong page would change the text.
                token = sum(text) % 5
                outputs[part.seq_id] = (token,)
                self.texts[part.seq_id] = (*text, token)
        self.scheduler.step_finished(batch, outputs)
        self.scheduler.check()
        return True

    def compute(self, batch: Batch) -> None:
        for part in batch.sequences:
            text = self.texts[part.seq_id]
            table = self.tables.setdefault(part.seq_id, [])
            table[part.kept_pages :] = part.new_pages
            for number in range(part.position // PAGE):
                assert self.pages[table[number]] == text[: (number + 1) * PAGE]
            if part.restore is not None:
                self.states[part.seq_id] = self.snapshots[part.restore]
            elif not part.position:
                self.states[part.seq_id] = ()
            if self.stateful:
                assert self.states[part.seq_id] == text[: part.position]
            end = part.position + len(part.tokens)
            assert text[part.position : end] == part.tokens
            for number in range(part.position // PAGE, -(-end // PAGE)):
                self.pages[table[number]] = text[: min(end, (number + 1) * PAGE)]
            self.states[part.seq_id] = text[:end]
            if part.save is not None:
                self.snapshots[part.save] = text[:end]
            self.rows[part.seq_id] += len(part.tokens)
            self.cached[part.seq_id] = part.cached

    def store(self, most: int = 8) -> None:
        for move in self.scheduler.sharing.moves.stores(most):
            content = self.content(move)
            assert content[-PAGE:] == move.tokens
            self.disk.index[move.name, move.snapshot is not None] = content
            self.disk.lost.discard((move.name, move.snapshot is not None))

    def content(self, move: Move) -> Tokens:
        if move.snapshot is not None:
            return self.snapshots[move.snapshot]
        assert move.page is not None
        return self.pages[move.page]

    def fetch(self, arrives: Sequence[bool]) -> bool:
        """Those that arrive of what is to be fetched; True if there was something."""
        moves = self.scheduler.sharing.moves
        wanted = moves.fetches()
        assert len(wanted) <= MOST_FETCHES
        for number, move in enumerate(wanted):
            if not arrives[number % len(arrives)]:
                continue
            snapshot = move.snapshot is not None
            content = self.disk.index.get((move.name, snapshot))
            there = content is not None and (move.name, snapshot) not in self.disk.lost
            if there:
                assert content is not None
                if move.snapshot is not None:
                    self.snapshots[move.snapshot] = content
                else:
                    assert move.page is not None
                    self.pages[move.page] = content
            moves.fetched(move, there)
            self.scheduler.check()
        return bool(wanted)

    def finish(self) -> None:
        """Runs all requests to their ends; fails if nothing goes on."""
        idle = 0
        while not self.scheduler.idle:
            fetched = self.fetch([True])
            self.store()
            idle = 0 if self.step() or fetched else idle + 1
            assert idle < 3
        self.store(1000)


def expected(request: Request) -> Tokens:
    text = request.prompt
    for _ in range(request.max_tokens):
        text = (*text, sum(text) % 5)
    return text


def ask(seq_id: int, seed: int, length: int, answer: int = 3) -> Request:
    """A request that has the beginning of all others of its seed."""
    tokens = random.Random(seed).choices(range(5), k=40)
    return Request(seq_id, tuple(tokens[:length]), max_tokens=answer)


ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 1), st.integers(1, 40)),
    st.tuples(st.just("submit"), st.integers(0, 1), st.integers(20, 40)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
    st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
    st.tuples(st.just("store"), st.integers(1, 4), st.just(0)),
    st.tuples(st.just("fetch"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 20), st.booleans()),
    st.tuples(st.just("lose"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("lose snapshots"), st.just(0), st.just(0)),
    st.tuples(st.sampled_from(["rewind", "refit"]), st.just(0), st.just(0)),
)


@pytest.mark.parametrize("limits", [LIMITS, RECURRENT])
@given(actions=st.lists(ACTIONS, min_size=15, max_size=40))
@settings(deadline=None, max_examples=150)
def test_what_is_found_is_what_was_computed(
    limits: Limits, actions: list[tuple[str, int, int]]
) -> None:
    disk = FakeDisk()
    nodes = Nodes(disk, limits)
    requests: dict[int, Request] = {}
    for seq_id, (what, first, second) in enumerate(actions):
        if what == "submit":
            requests[seq_id] = ask(seq_id, first, second)
            nodes.submit(requests[seq_id])
        elif what == "step":
            for _ in range(first):
                nodes.step()
        elif what == "store":
            nodes.store(first)
        elif what == "fetch":
            nodes.fetch([bool(first & 1), bool(first & 2), bool(first & 4)])
        elif what == "cancel" and first in requests:
            nodes.scheduler.cancel(first, distrust=bool(second))
            del requests[first]
        elif what == "lose":
            for name in sorted(disk.index)[::first]:
                if second:
                    disk.lost.add(name)
                else:
                    del disk.index[name]
        elif what == "lose snapshots":
            disk.lost |= {name for name in disk.index if name[1]}
        elif what == "rewind":
            nodes.scheduler.rewind()
            nodes.pages.clear()
            nodes.snapshots.clear()
        elif what == "refit":
            for misfit, _ in nodes.scheduler.refit(replace(limits, max_pages=18)):
                del requests[misfit]
            nodes.pages.clear()
            nodes.snapshots.clear()
        elif what == "restart":
            nodes.finish()
            done = {seq: nodes.texts[seq] for seq in requests}
            assert done == {seq: expected(request) for seq, request in requests.items()}
            requests.clear()
            nodes = Nodes(disk, limits)
    nodes.finish()
    for request in requests.values():
        assert nodes.texts[request.seq_id] == expected(request)
    for (_, snapshot), content in disk.index.items():
        assert content and (snapshot or len(content) % PAGE == 0)


@pytest.mark.parametrize("limits", [LIMITS, RECURRENT])
def test_a_restart_computes_only_what_is_new(limits: Limits) -> None:
    disk = FakeDisk()
    nodes = Nodes(disk, limits)
    nodes.submit(ask(1, 7, 30, answer=8))
    nodes.finish()
    again = Nodes(disk, limits)
    # 37 tokens were computed: 9 pages.
    turn = (*nodes.texts[1], 1, 2)
    again.submit(Request(2, turn, max_tokens=1))
    again.finish()
    assert (again.rows[2], again.cached[2]) == (40 - 36, 36)


def test_other_sequences_go_on_while_pages_come() -> None:
    disk = FakeDisk()
    nodes = Nodes(disk, LIMITS)
    nodes.submit(ask(1, 7, 30))
    nodes.finish()
    again = Nodes(disk, LIMITS)
    again.submit(ask(2, 7, 30))
    again.submit(ask(3, 8, 20, answer=6))
    while again.step():
        pass
    assert again.texts[3] == expected(ask(3, 8, 20, answer=6))
    assert (again.rows[2], len(again.scheduler.sharing.moves.fetches())) == (0, 7)
    again.finish()
    assert again.rows[2] == 2 + 2


def test_pages_on_disk_are_not_stored_again() -> None:
    disk = FakeDisk()
    for seq_id in range(2):
        nodes = Nodes(disk, LIMITS)
        nodes.submit(ask(seq_id, 7, 30))
        nodes.step()
        nodes.step()
        assert nodes.scheduler.sharing.moves.storing == (seq_id == 0)
        nodes.finish()


def test_what_was_not_finite_is_forgotten_on_disk_too() -> None:
    disk = FakeDisk()
    nodes = Nodes(disk, LIMITS)
    nodes.submit(ask(1, 7, 30))
    nodes.step()
    nodes.store()
    assert len(disk.index) == 3
    nodes.scheduler.cancel(1, distrust=True)
    assert not disk.index
