"""What stays the same however often a cluster is formed, and what follows from it for some workers.

No I/O: the root's own memory is measured once, by `draw`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from hearth.common import system
from hearth.common.errors import HearthError
from hearth.converter import Model
from hearth.root.planning.choices import check
from hearth.root.planning.plan import Plan, check_shares, make_plan, most_nodes, pages_for
from hearth.root.settings import ClusterSettings

# The root's process beside weights and KV cache: Python, gRPC and the usual steps take under
# 120 MiB (bench/memory.py); a large tokenizer and larger steps more.
_OVERHEAD_BYTES = 256 << 20


@dataclass(frozen=True)
class Blueprint:
    """The model and how it is to be divided."""

    model: Model
    settings: ClusterSettings
    # Positions of one sequence.
    context: int
    # Bytes that the root can give to weights and KV cache.
    room: int
    # By shares: making one takes a while.
    _plans: dict[tuple[float, ...], Plan] = field(default_factory=dict)

    @property
    def most_workers(self) -> int:
        """Workers that the model can be divided over, beside the root."""
        return most_nodes(self.model.spec) - 1

    def plan(self, workers: Sequence[str]) -> Plan:
        """Who holds what. Raises HearthError INVALID_ARGUMENT for what cannot be cut."""
        shares = self._shares(workers)
        plan = self._plans.get(shares)
        if plan is None:
            spec = self.model.spec
            plan = make_plan(spec, self.model.tensor_type, 1 + len(workers), shares)
            if self.context > spec.context_size:
                note = (
                    f"a context of {self.context} positions is more than the {spec.context_size} "
                    f"that {spec.name} was made for: text past that may be poor"
                )
                plan = dataclasses.replace(plan, notes=(*plan.notes, note))
            self._plans[shares] = plan
        return plan

    def pages(self, plan: Plan, workers: Sequence[tuple[str, int]]) -> int:
        """Pages of KV cache; workers: each one's name and the bytes it has room for, in rank order.

        Raises HearthError OUT_OF_MEMORY, whose metadata has the rank of the node that lacks it.
        """
        settings = self.settings
        rooms = [("the root", self.room)]
        rooms += [(f"worker {name}", room) for name, room in workers]
        return pages_for(
            self.model.spec,
            plan,
            settings.kv_type,
            settings.page_size,
            self.context,
            settings.sequences,
            rooms,
        )

    def expected_pages(self) -> int:
        """The pages when no node is short of memory."""
        return -(-self.context // self.settings.page_size) * self.settings.sequences

    def misfit(self, workers: Sequence[tuple[str, str, int]]) -> tuple[int, str] | None:
        """Why the model has no room on the root and these, with the numbers; None where it has.

        workers: each one's address, name and room, in rank order. The number is the rank of the
        node that lacks memory, 0 for the root or none.
        """
        try:
            plan = self.plan([address for address, _, _ in workers])
            self.pages(plan, [(name, room) for _, name, room in workers])
        except HearthError as error:
            return int(error.metadata.get("rank", "0")), error.message
        return None

    def _shares(self, workers: Sequence[str]) -> tuple[float, ...]:
        """Of the root and each worker: a share belongs to its worker, whoever else is there."""
        given, static = self.settings.shares, self.settings.workers
        if given is None:
            return (1.0,) * (1 + len(workers))
        if tuple(workers) == static:
            return tuple(given)  # whose count is the planner's to check
        of = dict(zip(static, given[1:], strict=False))
        return (given[0], *(of.get(worker, 1.0) for worker in workers))


def draw(model: Model, settings: ClusterSettings) -> Blueprint:
    """The blueprint. Raises HearthError for settings that cannot be."""
    spec = model.spec
    check(settings.lane, settings.sync_type, settings.kv_type, spec)
    check_shares(1 + len(settings.workers), settings.shares)
    context = settings.context or min(spec.context_size, 4096)
    room = max(0, system.memory_available() - _OVERHEAD_BYTES)
    if settings.memory_limit is not None:
        room = min(room, settings.memory_limit)
    blueprint = Blueprint(model, settings, context, room)
    blueprint.plan(settings.workers)
    return blueprint
