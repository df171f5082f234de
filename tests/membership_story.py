"""A membership and what happens to it, for tests: workers answer as told, decisions come true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from math import inf

from hearth.common.errors import Reason
from hearth.root.membership.apart import ROOT
from hearth.root.membership.decisions import Decision, Form, Member, Misfit, Rules
from hearth.root.membership.events import (
    Described,
    Event,
    Formed,
    FormFailed,
    Lost,
    Unreachable,
    Worked,
)
from hearth.root.membership.membership import Membership
from hearth.root.membership.peers import PeerState

GIB = 1 << 30
LOST = Reason.WORKER_LOST


def roomy(workers: tuple[Member, ...]) -> None:
    """Any number of nodes has room."""


def needs(total: int, root: int) -> Callable[[tuple[Member, ...]], Misfit | None]:
    """A model of `total` bytes in equal parts, on a root with room for `root` of them."""

    def fit(workers: tuple[Member, ...]) -> Misfit | None:
        part = total / (1 + len(workers))
        if root < part:
            return Misfit("", f"the root has {root} of {part:g}")
        for worker in workers:
            if worker.room < part:
                return Misfit(worker.address, f"{worker.title} has {worker.room} of {part:g}")
        return None

    return fit


class Checked(Membership):
    """A membership whose invariants are checked after every event and decision."""

    def handle(self, event: Event) -> None:
        try:
            super().handle(event)
        finally:
            self.check()

    def decide(self, now: float, busy: bool) -> Decision:
        decision = super().decide(now, busy)
        self.check()
        return decision


class Story:
    """A membership and a clock; workers answer as the test says, decisions come true."""

    def __init__(
        self,
        *static: str,
        most: int = 3,
        needed: int | None = None,
        fit: Callable[[tuple[Member, ...]], Misfit | None] = roomy,
    ) -> None:
        rules = Rules(most, len(static) if needed is None else needed, static)
        self.record: list[str] = []
        self.membership = Checked(rules, fit, self.record.append)
        self.now = 0.0
        self.busy = False
        # Whether a cluster that serves for a second has computed enough to be trusted.
        self.working = True
        self._formed_at = 0.0
        # What answers: (name, instance, room).
        self.up: dict[str, tuple[str, str, int]] = {}
        self.formed: list[tuple[str, ...]] = []
        # Workers because of which attempts to form fail: the event, but for its time.
        self.failing: dict[str, FormFailed] = {}
        # Workers that an attempt to form measures, and leaves out as slow.
        self.slow: set[str] = set()
        # Pairs that do not reach each other; attempts to form with such.
        self.apart: set[frozenset[str]] = set()
        self.attempts: list[tuple[str, ...]] = []

    def start(self, *addresses: str, room: int = GIB, instance: str = "1") -> Story:
        for address in addresses:
            self.up[address] = (address.partition(":")[0], f"{address} {instance}", room)
        return self

    def answer(self) -> None:
        for address in self.membership.due(self.now):
            if address in self.up:
                self.membership.handle(Described(self.now, address, *self.up[address]))
            else:
                self.membership.handle(Unreachable(self.now, address, f"{address} is silent"))

    def decide(self) -> Decision:
        return self.membership.decide(self.now, self.busy)

    def run(self, seconds: float) -> Decision:
        """Answers and does what is decided, for so long; the last decision."""
        end = self.now + seconds
        while True:
            self.answer()
            self.work()
            decision = self.decide()
            while isinstance(decision, Form):
                self.form(decision)
                decision = self.decide()
            if self.now >= end:
                return decision
            self.now = min(end, self.now + 0.25)

    def work(self) -> None:
        serving = self.membership.serving
        if self.working and serving is not None and self.now >= self._formed_at + 1.0:
            self._formed_at = inf  # once
            self.membership.handle(Worked(self.now, serving))

    def form(self, decision: Form) -> None:
        evil = next((worker for worker in decision.workers if worker in self.failing), None)
        if evil is not None:
            self.attempts.append(decision.workers)
            self.membership.handle(replace(self.failing[evil], at=self.now))
            return
        dead = next((worker for worker in decision.workers if worker not in self.up), None)
        nodes = (*decision.workers, ROOT)
        pairs = (pair for pair in combinations(nodes, 2) if set(pair) in self.apart)
        one, other = next(pairs, ("", ""))
        if dead is None and one:
            self.attempts.append(decision.workers)
            self.now += 10.0  # so long they try to reach each other
            problem = f"{one} and {other} do not reach each other"
            self.membership.handle(
                FormFailed(self.now, one, Reason.PEER_LOST, problem, apart_from=other)
            )
        elif dead is None:
            self._formed_at = self.now
            workers = tuple(worker for worker in decision.workers if worker not in self.slow)
            self.membership.handle(Formed(self.now, workers))
            self.formed.append(workers)
        else:
            self.membership.handle(FormFailed(self.now, dead, LOST, f"{dead} was lost"))

    def fail(self, address: str, reason: str, unfit: bool = False) -> Story:
        """Attempts to form with this worker fail from now on, because of it."""
        problem = f"{address} failed"
        self.failing[address] = FormFailed(0.0, address, reason, problem, unfit=unfit)
        return self

    def hang(self, address: str) -> Story:
        """A step's deadline passes: the worker answers questions, and no step."""
        self.membership.handle(Lost(self.now, address, f"{address} hangs", unfit=True))
        return self

    def lose(self, address: str, on_purpose: bool = False) -> Story:
        del self.up[address]
        self.membership.handle(Lost(self.now, address, f"{address} was lost", on_purpose))
        return self

    def part(self, one: str, other: str) -> Story:
        """The cable between two is cut; noticed where both are in."""
        self.apart.add(frozenset((one, other)))
        if self.membership.serving and {one, other} <= {*self.membership.serving, ROOT}:
            problem = f"{one} and {other} do not reach each other"
            self.membership.handle(Lost(self.now, one, problem, apart_from=other))
        return self

    def of(self, address: str) -> tuple[PeerState, str]:
        peer = next(c for c in self.membership.peers if c.address == address)
        return peer.shown, peer.reason


def serving(*static: str, **options: object) -> Story:
    """A cluster of a static list that serves, and has for a while."""
    story = Story(*static, **options)  # type: ignore[arg-type]
    story.start(*static).run(20)
    assert story.membership.serving == static
    return story
