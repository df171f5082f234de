"""Settings that do not change between formations, and the plans derived from them.

No I/O, except that `draw` measures the root's own memory once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hearth.common import devices
from hearth.common.errors import HearthError
from hearth.common.sizes import format_size
from hearth.converter import Model
from hearth.root.planning.choices import check, check_context
from hearth.root.planning.cost import work_of
from hearth.root.planning.facts import NodeFacts
from hearth.root.planning.kept import QUICK_SECONDS, WORTH, Slowing, slowing
from hearth.root.planning.layout import Layout, layout_of, nodes_of, ranks_of
from hearth.root.planning.machines import Link, Machine
from hearth.root.planning.memory import Room, needed_bytes, room_for
from hearth.root.planning.plan import NodePlan, Plan
from hearth.root.planning.planner import check_shares, make_plan, most_nodes, most_stages
from hearth.root.planning.predict import Choices, Prediction, Predictor, option_text
from hearth.root.planning.search import Search
from hearth.root.planning.shares import shares_by_memory
from hearth.root.planning.streaming import disk_bytes, layer_bytes, to_disk
from hearth.root.settings import ClusterSettings

_MOST_RUNNING = 16
# Bytes per second of a disk that a refusal speaks of: a solid state disk behind SATA or USB.
_COMMON_DISK = 500e6
# Sets of workers that are remembered: addresses may change for ever.
_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Workers that are not used because they would slow requests: addresses, and why."""

    workers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Blueprint:
    """A model, and the settings that decide how it is divided."""

    model: Model
    settings: ClusterSettings
    # Positions of one sequence.
    context: int
    # Bytes available on the root for weights and KV cache.
    room: int
    # Plans by layout and shares, kept because making one takes a while.
    _plans: dict[tuple[Layout, tuple[float, ...]], Plan] = field(default_factory=dict)
    # Shares chosen by memory, by the workers' addresses.
    _chosen: dict[tuple[str, ...], tuple[float, ...]] = field(default_factory=dict)
    # Those workers whose shares are by the nodes' measured speeds instead.
    _balanced: set[tuple[str, ...]] = field(default_factory=set)
    # Workers for which no shares were found, with their memory.
    _hopeless: set[tuple[NodeFacts, ...]] = field(default_factory=set)
    # The root and its workers as they were measured, and the layout chosen by that, by addresses.
    _machines: dict[tuple[str, ...], tuple[Machine, ...]] = field(default_factory=dict)
    _layouts: dict[tuple[str, ...], Layout] = field(default_factory=dict)
    _asked: set[tuple[str, ...]] = field(default_factory=set)
    # The workers that slow requests, by the workers' addresses, until something is measured.
    _slow: dict[tuple[str, ...], Slowing | None] = field(default_factory=dict)

    @property
    def most_workers(self) -> int:
        """Maximum number of workers the model can be divided over, besides the root."""
        parallel, layers = self.settings.parallel, self.settings.stages
        ranks = ranks_of(parallel)
        if ranks is not None:
            return sum(ranks) - 1
        if layers is not None and parallel != "tensor":
            return len(layers) - 1
        if parallel == "pipeline":
            return most_stages(self.model.spec) - 1
        return most_nodes(self.model.spec) - 1

    def layout(self, workers: Sequence[str]) -> Layout:
        """The layout for the root and these workers. Raises HearthError INVALID_ARGUMENT."""
        settings = self.settings
        chosen = self._layouts.get(tuple(workers))
        if chosen is not None:
            return chosen
        # Fewer workers than are listed, or found ones: the options may be for other numbers.
        exact = bool(settings.workers) and tuple(workers) == settings.workers
        return layout_of(settings.parallel, 1 + len(workers), settings.stages, exact=exact)

    def plan(self, workers: Sequence[str]) -> Plan:
        """The plan for the root and the workers at these addresses.

        Raises HearthError INVALID_ARGUMENT if the model cannot be cut that way.
        """
        shares, layout = self._shares(workers), self.layout(workers)
        plan = self._plans.get((layout, shares))
        if plan is None:
            spec = self.model.spec
            plan = make_plan(spec, self.model.tensor_type, layout, shares)
            plan = replace(plan, notes=(*self.model.notes, *layout.notes, *plan.notes))
            draft = self.settings.draft
            if draft is not None:
                size = format_size(draft.size_bytes)
                note = f"draft model {draft.name}: {size} of the root's memory"
                plan = replace(plan, notes=(*plan.notes, note))
            if self.context > spec.context_size:
                note = (
                    f"a context of {self.context} positions is more than the {spec.context_size} "
                    f"that {spec.name} supports: text beyond that may be poor"
                )
                plan = replace(plan, notes=(*plan.notes, note))
            if self.settings.shares is None and len(set(shares)) > 1:
                shown = ",".join(f"{share:g}" for share in shares)
                by_speed = tuple(workers) in self._balanced
                reason = "measured speeds" if by_speed else "memory: equal ones do not fit"
                note = f"--shares {shown} by the nodes' {reason}"
                plan = replace(plan, notes=(*plan.notes, note))
            self._plans[layout, shares] = plan
        return plan

    def to_measure(self, workers: Sequence[str]) -> bool:
        """True once for each set of workers: what was measured, or could not be, is kept.

        So a cluster that forms again after a loss takes no time for it, and keeps its layout.
        """
        if len(self._asked) >= _REMEMBERED:
            self._asked.clear()
        key = tuple(workers)
        if key in self._asked:
            return False
        self._asked.add(key)
        return True

    def known_machines(self, workers: Sequence[str]) -> list[Machine] | None:
        """The root and these workers, as measured alone or in a larger cluster; None if not."""
        exact = self._machines.get(tuple(workers))
        if exact is not None:
            return list(exact)
        for key, machines in self._machines.items():
            if not set(workers) <= set(key):
                continue
            by_address = dict(zip(key, machines[1:], strict=True))
            return [machines[0], *(by_address[worker] for worker in workers)]
        return None

    def forget(self, worker: str) -> None:
        """Forget what was measured of a worker, which has been started again or let in again."""
        for key in [key for key in self._machines if worker in key]:
            del self._machines[key]
        self._asked.difference_update([key for key in self._asked if worker in key])
        self._slow.clear()

    def measured(self, workers: Sequence[str], machines: Sequence[Machine]) -> None:
        """Takes the measured root and workers; chooses layout and shares where none is given.

        The plainest that is expected to be nearly as fast as the fastest: tensor parallelism with
        the present shares, then another layout with them, then other shares.
        """
        key = tuple(workers)
        for known in (self._machines, self._layouts):
            if len(known) >= _REMEMBERED:
                known.clear()
        self._machines[key] = tuple(machines)
        self._layouts.pop(key, None)
        self._slow.clear()
        if self._given or not workers:
            return
        search, shares = self._search(), self._shares(workers)
        plain = search.with_shares(machines, shares)
        tensor = next((each for each in plain if len(each.layout.ranks) == 1), None)
        if tensor is None or (tensor.fits and tensor.request_seconds < QUICK_SECONDS):
            return
        found = [each for each in search.of(machines) if each.fits]
        least = min((each.request_seconds for each in found), default=0.0)
        found.sort(key=lambda each: each.request_seconds)
        ranked = [tensor, *sorted(plain, key=lambda each: each.request_seconds), *found]
        best = next(
            (each for each in ranked if each.fits and each.request_seconds <= WORTH * least), None
        )
        if best is None:
            return
        if best.shares != shares:
            self.take_shares(workers, best.shares)
        if best.layout != tensor.layout:
            shape = option_text(best.layout, ()).removeprefix("--parallel ")
            reason = (
                f"layout {shape}: {best.decode:.3g} tokens/s are expected of it, and "
                f"{tensor.decode:.3g} of tensor parallelism over these links"
            )
            self._layouts[key] = replace(best.layout, notes=(reason,))

    def prediction(
        self, plan: Plan, workers: Sequence[str], links: Link | None
    ) -> Prediction | None:
        """The expected speed of a plan; None where the nodes were not measured.

        links: as the mesh measured them, where it did.
        """
        machines = self._machines.get(tuple(workers))
        if machines is None:
            return None
        if links is not None:
            machines = tuple(replace(each, link=links) for each in machines)
        shares, layout = self._shares(workers), self.layout(workers)
        return Predictor(self.model.spec, self._choices()).predict(plan, layout, shares, machines)

    @property
    def _given(self) -> bool:
        """True where an option names the layout or the shares, so that nothing is chosen."""
        settings = self.settings
        return (
            settings.parallel != "auto"
            or settings.stages is not None
            or settings.shares is not None
        )

    def slowing(self, workers: Sequence[str]) -> list[str]:
        """A sentence on workers that slow requests, where they are used all the same."""
        machines = self.known_machines(workers)
        found = self._slowing(workers)
        if machines is None or found is None:
            return []
        names = " ".join(machines[number].name for number in found.workers)
        return [
            f"without {names} a request would take {found.seconds_without / found.seconds:.2g} of "
            "the time: see `hearth cluster drain`"
        ]

    def left_out(self, workers: Sequence[NodeFacts]) -> LeftOut | None:
        """The workers to leave out because requests are faster without them; None to use all.

        Where options name layout or shares, or ask for all workers, none is left out; nor where
        the others have less room for the KV cache that was asked for.
        """
        if self._given or self.settings.use_all_workers or not workers:
            return None
        found = self._slowing([worker.address for worker in workers])
        if found is None:
            return None
        rest = [worker for i, worker in enumerate(workers, 1) if i not in found.workers]
        if self.misfit(rest) is not None or self._pages(rest) < self._pages(workers):
            return None
        return LeftOut(tuple(workers[i - 1].address for i in found.workers), _reason(found))

    def _slowing(self, workers: Sequence[str]) -> Slowing | None:
        key = tuple(workers)
        if key not in self._slow:
            if len(self._slow) >= _REMEMBERED:
                self._slow.clear()
            machines = self.known_machines(workers)
            self._slow[key] = None if machines is None else slowing(self._search(), machines)
        return self._slow[key]

    def _pages(self, workers: Sequence[NodeFacts]) -> int:
        """Pages of KV cache with these workers; 0 where the model does not fit."""
        plan = self.plan([worker.address for worker in workers])
        try:
            return self.cache_room(plan, workers).pages
        except HearthError:
            return 0

    def _search(self) -> Search:
        return Search(self.model.spec, self.model.tensor_type, self._choices())

    def _choices(self) -> Choices:
        settings = self.settings
        return Choices(
            context=self.context,
            kv_type=settings.kv_type,
            page_size=settings.page_size,
            sync_type=settings.sync_type,
            lane=settings.lane,
            step_tokens=settings.max_step_tokens,
            depth=min(256, self.context),
            weights_on=settings.weights_on,
            sequences=settings.sequences,
        )

    def cache_room(
        self, plan: Plan, workers: Sequence[NodeFacts], *, on_disk: bool = False
    ) -> Room:
        """Pages of KV cache, and sequences at once; workers: in the plan's order.

        on_disk: weights may lie on disk. Raises HearthError OUT_OF_MEMORY; the metadata has the
        number of the node that is short.
        """
        try:
            return self._room(plan, workers, on_disk=on_disk)
        except HearthError as error:
            hint = "" if on_disk else self._disk_hint(plan, workers)
            if not hint:
                raise
            text = error.message + hint
            raise HearthError(error.reason, text, error.metadata, error.code) from None

    def _room(self, plan: Plan, workers: Sequence[NodeFacts], *, on_disk: bool) -> Room:
        settings = self.settings
        nodes = [NodeFacts("the root", self.room)]
        nodes += [replace(worker, name=f"worker {worker.name}") for worker in workers]
        return room_for(
            self.model.spec,
            plan,
            settings.kv_type,
            settings.page_size,
            self.context,
            settings.sequences,
            self.most_running,
            nodes,
            on_disk=on_disk,
        )

    def _disk_hint(self, plan: Plan, workers: Sequence[NodeFacts]) -> str:
        """The speed from disk of a plan that memory is too small for; "" where none helps."""
        if self.settings.weights_on == "disk":
            return ""
        try:
            nodes = self._held(plan, workers, self._room(plan, workers, on_disk=True))
        except HearthError:
            return ""
        read = max(map(disk_bytes, nodes))
        return (
            f"; or --weights-on disk, with which a step reads {format_size(read)} from disk: "
            f"{_COMMON_DISK / read:.2g} tokens/s at {_COMMON_DISK / 1e6:g} MB/s"
        )

    def with_disk(self, plan: Plan, workers: Sequence[NodeFacts]) -> tuple[Plan, Room]:
        """The plan with weights on disk where memory is too small, and what is left for the cache.

        As `cache_room`. Raises HearthError OUT_OF_MEMORY also where --weights-on is memory.
        """
        on_disk = self.settings.weights_on == "disk"
        room = self.cache_room(plan, workers, on_disk=on_disk)
        if not on_disk:
            return plan, room
        nodes = iter(self._held(plan, workers, room))
        stages = [
            replace(stage, ranks=tuple(next(nodes) for _ in stage.ranks)) for stage in plan.stages
        ]
        held = Plan(tuple(stages), plan.notes)
        notes = []
        for node in held.nodes:
            if node.disk_layers:
                layers = f"{len(node.disk_layers)} of {len(layer_bytes(node))} layers"
                who = "the root" if node is held.nodes[0] else "a worker"
                size = format_size(disk_bytes(node))
                notes.append(f"{who} has {layers} on disk: a step reads {size} from there")
        return replace(held, notes=(*plan.notes, *notes)), room

    def _held(self, plan: Plan, workers: Sequence[NodeFacts], room: Room) -> list[NodePlan]:
        """The nodes with weights on disk where memory is too small beside such a cache."""
        rooms = [self.room, *(worker.memory_bytes for worker in workers)]
        nodes = []
        for node, memory in zip(plan.nodes, rooms, strict=True):
            page = node.kv_page_bytes(
                self.model.spec, self.settings.kv_type, self.settings.page_size
            )
            cache = room.pages * page + room.sequences * node.state_bytes(self.model.spec)
            nodes.append(to_disk(node, memory - cache) or node)
        return nodes

    @property
    def most_running(self) -> int:
        """Maximum number of sequences that run at once."""
        return min(_MOST_RUNNING, self.settings.max_step_tokens)

    def expected_room(self) -> Room:
        """The room if every node has enough memory."""
        pages = -(-self.context // self.settings.page_size) * self.settings.sequences
        return Room(pages, self.most_running)

    def misfit(self, workers: Sequence[NodeFacts]) -> tuple[int, str] | None:
        """The node without enough memory and the reason; None if the model fits.

        Where equal shares do not fit, and --shares gives none, plans of these workers have shares
        by memory from then on. The node is i for worker i, and 0 for the root or if the reason is
        not one node's memory.
        """
        try:
            self.cache_room(self.plan([worker.address for worker in workers]), workers)
        except HearthError as error:
            if "node" in error.metadata and self._choose_shares(workers):
                return None
            if self.settings.weights_on == "disk":
                try:
                    plan = self.plan([worker.address for worker in workers])
                    self.cache_room(plan, workers, on_disk=True)
                except HearthError as short:
                    error = short
                else:
                    return None
            return int(error.metadata.get("node", "0")), error.message
        return None

    def _choose_shares(self, workers: Sequence[NodeFacts]) -> bool:
        """Choose the shares of these workers by their memory; False where none fit."""
        known = tuple(workers)
        if self.settings.shares is not None or not workers or known in self._hopeless:
            return False
        addresses = tuple(worker.address for worker in workers)
        rooms = [self.room, *(worker.memory_bytes for worker in workers)]
        spec, settings = self.model.spec, self.settings
        layout = self.layout(addresses)

        def needs(shares: tuple[float, ...]) -> list[int]:
            plan = make_plan(spec, self.model.tensor_type, layout, shares)
            sizes = settings.kv_type, settings.page_size, self.context
            return [needed_bytes(node, spec, *sizes) for node in plan.nodes]

        equal = (1.0,) * len(rooms)
        if all(need <= room for need, room in zip(needs(equal), rooms, strict=True)):
            self._chosen.pop(addresses, None)
            self._balanced.discard(addresses)
            return True
        shares = shares_by_memory(rooms, needs)
        if shares is None:
            if len(self._hopeless) >= _REMEMBERED:
                self._hopeless.clear()
            self._hopeless.add(known)
            return False
        if len(self._chosen) >= _REMEMBERED:
            self._chosen.clear()
        self._chosen[addresses] = shares
        self._balanced.discard(addresses)
        return True

    def faster_shares(
        self, workers: Sequence[str], step_seconds: float, node_seconds: Sequence[float]
    ) -> tuple[tuple[float, ...], float] | None:
        """Shares with which a token is expected to take less time, and how many times less.

        step_seconds: a measured decode step of one sequence. node_seconds: the computing of each
        node in it, the root's first. None where nothing is gained by far, where a node lacks the
        memory, and for plans of several stages, whose layers are the cut.
        """
        machines = self._machines.get(tuple(workers))
        plan = self.plan(workers)
        if machines is None or len(plan.stages) > 1 or min(node_seconds, default=0.0) <= 0:
            return None
        slowest = max(node_seconds)
        if slowest * len(node_seconds) < WORTH * sum(node_seconds):
            return None
        spec, settings = self.model.spec, self.settings
        speeds = [
            work_of(node, spec).read(1) / seconds
            for node, seconds in zip(plan.nodes, node_seconds, strict=True)
        ]
        shares = tuple(max(1.0, round(100 * speed / sum(speeds))) for speed in speeds)
        other = make_plan(spec, self.model.tensor_type, self.layout(workers), shares)
        expected = 0.0
        for node, speed, machine in zip(other.nodes, speeds, machines, strict=True):
            expected = max(expected, work_of(node, spec).read(1) / speed)
            need = needed_bytes(node, spec, settings.kv_type, settings.page_size, self.context)
            if need > machine.memory_bytes:
                return None
        gain = step_seconds / max(step_seconds - slowest + expected, expected)
        return (shares, gain) if gain >= WORTH else None

    def take_shares(self, workers: Sequence[str], shares: tuple[float, ...]) -> None:
        """Give the root and these workers such shares in later plans, where --shares gives none."""
        if self.settings.shares is not None:
            return
        key = tuple(workers)
        if len(self._chosen) >= _REMEMBERED:
            self._chosen.clear()
            self._balanced.clear()
        self._chosen[key] = shares
        self._balanced.add(key)

    def _shares(self, workers: Sequence[str]) -> tuple[float, ...]:
        """Shares of the root and each worker; a worker keeps its share in every plan."""
        given, static = self.settings.shares, self.settings.workers
        if given is None:
            return self._chosen.get(tuple(workers), (1.0,) * (1 + len(workers)))
        if tuple(workers) == static:
            return tuple(given)  # the planner checks their count
        of = dict(zip(static, given[1:], strict=False))
        return (given[0], *(of.get(worker, 1.0) for worker in workers))


def draw(model: Model, settings: ClusterSettings) -> Blueprint:
    """The blueprint of a model. Raises HearthError for settings that do not fit it."""
    spec = model.spec
    check(settings.lane, settings.sync_type, settings.kv_type, spec)
    check_shares(1 + len(settings.workers), settings.shares)
    context = settings.context or min(spec.context_size, 4096)
    check_context(context, spec)
    room = devices.memory_for_model(settings.device, settings.memory_limit)
    if settings.draft is not None:
        room = max(0, room - settings.draft.size_bytes)
    blueprint = Blueprint(model, settings, context, room)
    blueprint.plan(settings.workers)
    wanted = nodes_of(settings.parallel, settings.stages)
    if wanted is not None and not settings.workers:
        # Workers are found later. What never can be is refused before.
        make_plan(spec, model.tensor_type, layout_of(settings.parallel, wanted, settings.stages))
    return blueprint


def _reason(found: Slowing) -> str:
    """The sentence on workers that are left out."""
    others = (
        f"; eight sequences together would have {found.many:.3g} tokens/s with it, and "
        f"{found.many_without:.3g} without"
        if found.many > WORTH * found.many_without
        else ""
    )
    return (
        f"left out: a request is expected to take {found.seconds:.3g} s with it, and "
        f"{found.seconds_without:.3g} s without{others} (--use-all-workers uses it)"
    )
