"""Predictions of every layout worth trying, best first, and what would help. Pure."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from hearth.common.errors import HearthError, Reason
from hearth.converter.spec import ModelSpec
from hearth.root.planning.catalogue import LINKS
from hearth.root.planning.layout import Layout
from hearth.root.planning.machines import Machine
from hearth.root.planning.memory import needed_bytes
from hearth.root.planning.plan import Plan
from hearth.root.planning.planner import make_plan, most_nodes, most_stages
from hearth.root.planning.predict import Choices, Prediction, Predictor, layouts, speed_shares
from hearth.root.planning.shares import shares_by_memory

# Types of a model's tensors.
Types = Callable[[str], str]
# Sets of machines of one size: more differ only by machines that are slower still.
_MOST_SETS = 12
# Machines of which every set is looked at.
_MOST_COMBINED = 10
# A change is worth its words from here on.
_WORTH = 1.05
# Machines that advice adds at most.
_MOST_ADDED = 256


@dataclass(frozen=True, slots=True)
class Search:
    """A model, and the settings of its predictions."""

    spec: ModelSpec
    types: Types
    choices: Choices
    # Plans by layout and shares; None: it cannot be cut that way.
    _plans: dict[tuple[Layout, tuple[float, ...]], Plan | None] = field(
        default_factory=dict, init=False, compare=False
    )

    def best(self, machines: Sequence[Machine]) -> list[Prediction]:
        """Predictions for 1 to all of the machines, best first; the first machine is the root.

        Those that do not fit come last. Raises HearthError INVALID_ARGUMENT for no machines.
        """
        if not machines:
            raise HearthError(Reason.INVALID_ARGUMENT, "a plan needs at least one machine")
        found = [each for some in machine_sets(machines) for each in self.of(some)]
        return sorted(found, key=lambda each: (not each.fits, -each.decode, len(each.machines)))

    def of(self, machines: Sequence[Machine]) -> list[Prediction]:
        """Predictions of every layout of exactly these machines."""
        spec = self.spec
        found = []
        for layout in layouts(len(machines), most_nodes(spec), most_stages(spec)):
            tried: set[tuple[float, ...]] = set()
            for shares in self._shares(layout, machines):
                if shares not in tried:
                    tried.add(shares)
                    found += self._predict(layout, shares, machines)
        return found

    def with_shares(self, machines: Sequence[Machine], shares: Sequence[float]) -> list[Prediction]:
        """Predictions of every layout of exactly these machines with these shares."""
        spec = self.spec
        found = []
        for layout in layouts(len(machines), most_nodes(spec), most_stages(spec)):
            found += self._predict(layout, tuple(shares), machines)
        return found

    def has_room(self, machines: Sequence[Machine]) -> bool:
        """True if the model fits on exactly these machines in some layout."""
        spec = self.spec
        every = layouts(len(machines), most_nodes(spec), most_stages(spec))
        return any(
            self._fits(layout, shares, machines)
            for layout in every
            for shares in self._shares(layout, machines)
        )

    def whole_bytes(self) -> int:
        """Bytes of memory that the model needs on one machine."""
        return self._needs(Layout.tensor(1), (1.0,))[0]

    def _shares(self, layout: Layout, machines: Sequence[Machine]) -> Iterator[tuple[float, ...]]:
        """Equal shares, those by speed, and if neither fits those by memory."""
        equal, fast = (1.0,) * len(machines), speed_shares(machines)
        yield equal
        if fast != equal:
            yield fast
        rooms = [machine.memory_bytes for machine in machines]
        if (
            len(machines) < 2
            or sum(self._needs(layout, equal)) > sum(rooms)
            or self._fits(layout, equal, machines)
            or self._fits(layout, fast, machines)
        ):
            return
        shares = shares_by_memory(rooms, lambda shares: self._needs(layout, shares))
        if shares is not None:
            yield shares

    def _needs(self, layout: Layout, shares: tuple[float, ...]) -> list[int]:
        """Bytes that each machine needs; a layout that cannot be cut fits nowhere."""
        plan = self._plan(layout, shares)
        if plan is None:
            return [1 << 62] * layout.nodes
        sizes = self.choices.kv_type, self.choices.page_size, self.choices.context
        return [needed_bytes(node, self.spec, *sizes) for node in plan.nodes]

    def _fits(self, layout: Layout, shares: tuple[float, ...], machines: Sequence[Machine]) -> bool:
        needs = self._needs(layout, shares)
        return all(
            need <= machine.memory_bytes for need, machine in zip(needs, machines, strict=True)
        )

    def _predict(
        self, layout: Layout, shares: tuple[float, ...], machines: Sequence[Machine]
    ) -> list[Prediction]:
        plan = self._plan(layout, shares)
        if plan is None:
            return []
        return [Predictor(self.spec, self.choices).predict(plan, layout, shares, machines)]

    def _plan(self, layout: Layout, shares: tuple[float, ...]) -> Plan | None:
        key = layout, shares
        if key not in self._plans:
            try:
                self._plans[key] = make_plan(self.spec, self.types, layout, shares)
            except HearthError:
                self._plans[key] = None  # such as shares that leave a node without a head
        return self._plans[key]


def machine_sets(machines: Sequence[Machine]) -> Iterator[tuple[Machine, ...]]:
    """The root with 0 to all of the others; sets of equal machines once, faster ones first."""
    root, *others = machines
    if len(others) > _MOST_COMBINED:
        by_speed = sorted(others, key=lambda machine: -machine.read_bandwidth)
        kept = {count: set(map(id, by_speed[:count])) for count in range(len(others) + 1)}
        for names in kept.values():
            yield (root, *(machine for machine in others if id(machine) in names))
        return
    for count in range(len(others) + 1):
        seen: set[tuple[Machine, ...]] = set()
        unique = []
        for some in combinations(others, count):
            alike = tuple(sorted((replace(each, name="") for each in some), key=repr))
            if alike not in seen:
                seen.add(alike)
                unique.append(some)
        unique.sort(key=lambda some: -sum(each.read_bandwidth for each in some))
        for some in unique[:_MOST_SETS]:
            yield (root, *some)


def advice(search: Search, machines: Sequence[Machine], smaller: Types | None) -> list[str]:
    """Sentences on what to change, the most useful first. smaller: types of --weights q4_k_m."""
    predictions = search.best(machines)
    if not predictions:
        return ["no layout can be cut for these machines"]
    best = predictions[0]
    if not best.fits:
        return _memory_advice(search, machines, smaller)
    gains: list[tuple[float, str]] = []
    used = {machine.name for machine in best.machines}
    idle = [machine.name for machine in machines if machine.name not in used]
    if idle:
        everyone = [each for each in predictions if len(each.machines) == len(machines)]
        fastest = max((each.decode for each in everyone if each.fits), default=0.0)
        # Machines that would change nothing need no sentence of their own.
        gain = best.decode / fastest if fastest else 1.0
        gains.append((gain, f"leave out {_joined(idle)}"))
    if any(machine.link.shared for machine in machines):
        wired = [_wired(machine) for machine in machines]
        gain = search.best(wired)[0].decode / best.decode
        gains.append((gain, "use a switch and cables instead of Wi-Fi"))
    if best.limit in ("bandwidth", "latency") and search.choices.sync_type != "q80":
        short = replace(search, choices=replace(search.choices, sync_type="q80"))
        gain = short.best(machines)[0].decode / best.decode
        gains.append((gain, "use --sync-type q80"))
    if smaller is not None:
        gain = replace(search, types=smaller).best(machines)[0].decode / best.decode
        gains.append((gain, "use --weights q4_k_m"))
    if len(machines) > 1 and len(machines) < _MOST_COMBINED:
        more = replace(best.machines[-1], name="another")
        gain = search.best([*machines, more])[0].decode / best.decode
        gains.append((gain, f"add another {more.kind}"))
    gains.sort(key=lambda each: -each[0])
    return [f"{text}: {gain:.2g} times the speed" for gain, text in gains if gain >= _WORTH]


def _memory_advice(search: Search, machines: Sequence[Machine], smaller: Types | None) -> list[str]:
    if smaller is not None and replace(search, types=smaller).best(machines)[0].fits:
        return ["use --weights q4_k_m: it fits"]
    last = max(machines, key=lambda each: (each.memory_bytes, each.read_bandwidth))
    for types, words in ((search.types, ""), (smaller, " with --weights q4_k_m")):
        if types is None:
            continue
        count = _machines_needed(replace(search, types=types), machines, last)
        if count is not None:
            return [f"add {count} more of {last.kind}{words}: then it fits"]
    return ["use machines with more memory"]


def _machines_needed(search: Search, machines: Sequence[Machine], more: Machine) -> int | None:
    """Number of machines like `more` to add until the model fits; None if too many."""

    def fits(count: int) -> bool:
        return search.has_room(
            [*machines, *(replace(more, name=f"more-{i}") for i in range(count))]
        )

    lacking = search.whole_bytes() - sum(machine.memory_bytes for machine in machines)
    # Fewer cannot hold the weights alone.
    low = max(0, math.ceil(lacking / more.memory_bytes) - 1)
    step = 1
    while not fits(low + step):
        low, step = low + step, 2 * step
        if low + step > _MOST_ADDED:
            return None
    high = low + step
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _wired(machine: Machine) -> Machine:
    return replace(machine, link=LINKS["gigabit"]) if machine.link.shared else machine


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
