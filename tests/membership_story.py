"""A membership and what happens to it, for tests: workers answer as told, decisions come true."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from hearth.common.errors import Reason
from hearth.root.membership.candidates import Decision, Form, Member, Misfit, Rules, State
from hearth.root.membership.membership import Membership

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
        self.membership = Membership(rules, fit)
        self.now = 0.0
        self.busy = False
        # What answers: (name, instance, room).
        self.up: dict[str, tuple[str, str, int]] = {}
        self.formed: list[tuple[str, ...]] = []
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
                self.membership.described(address, *self.up[address], self.now)
            else:
                self.membership.unreachable(address, f"{address} is silent", self.now)

    def decide(self) -> Decision:
        return self.membership.decide(self.now, self.busy)

    def run(self, seconds: float) -> Decision:
        """Answers and does what is decided, for so long; the last decision."""
        end = self.now + seconds
        while True:
            self.answer()
            decision = self.decide()
            while isinstance(decision, Form):
                self.form(decision)
                decision = self.decide()
            if self.now >= end:
                return decision
            self.now = min(end, self.now + 0.25)

    def form(self, decision: Form) -> None:
        dead = next((worker for worker in decision.workers if worker not in self.up), None)
        pairs = (pair for pair in combinations(decision.workers, 2) if set(pair) in self.apart)
        one, other = next(pairs, ("", ""))
        if dead is None and one:
            self.attempts.append(decision.workers)
            self.now += 10.0  # so long they try to reach each other
            problem = f"{one} and {other} do not reach each other"
            self.membership.failed(one, Reason.PEER_LOST, problem, self.now, peer=other)
        elif dead is None:
            self.membership.formed(decision.workers, self.now)
            self.formed.append(decision.workers)
        else:
            self.membership.failed(dead, LOST, f"{dead} was lost", self.now)

    def lose(self, address: str, on_purpose: bool = False) -> Story:
        del self.up[address]
        self.membership.lost(address, f"{address} was lost", on_purpose, self.now)
        return self

    def part(self, one: str, other: str) -> Story:
        """The cable between two is cut; noticed where both are in."""
        self.apart.add(frozenset((one, other)))
        if {one, other} <= set(self.membership.serving or ()):
            problem = f"{one} and {other} do not reach each other"
            self.membership.lost(one, problem, False, self.now, peer=other)
        return self

    def of(self, address: str) -> tuple[State, str]:
        candidate = next(c for c in self.membership.candidates if c.address == address)
        return candidate.shown, candidate.reason


def serving(*static: str, **options: object) -> Story:
    """A cluster of a static list that serves, and has for a while."""
    story = Story(*static, **options)  # type: ignore[arg-type]
    story.start(*static).run(20)
    assert story.membership.serving == static
    return story
