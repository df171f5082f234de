"""The KV cache and the sequences' states that fit besides the weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size
from hearth.converter.spec import ModelSpec
from hearth.root.planning.facts import NodeFacts
from hearth.root.planning.plan import NodePlan, Plan
from hearth.root.planning.streaming import least_held_bytes

# Part of the memory that KV cache for more than one sequence may take from weights.
_CACHE_PART = 1 / 8


@dataclass(frozen=True, slots=True)
class Room:
    """Pages of KV cache, and sequences that have a state of recurrent mixers at the same time."""

    pages: int
    sequences: int


def needed_bytes(
    node: NodePlan,
    spec: ModelSpec,
    kv_type: str,
    page_size: int,
    context: int,
    *,
    on_disk: bool = False,
) -> int:
    """Bytes that a node needs at least: weights, and one sequence of `context` positions.

    on_disk: weights may lie on disk, all layers of them.
    """
    pages = -(-context // page_size)
    return (
        (least_held_bytes(node) if on_disk else node.weight_bytes)
        + pages * node.kv_page_bytes(spec, kv_type, page_size)
        + (node.state_bytes(spec))
    )


def disk_cache_bytes(one: int, memory_bytes: int, sequences: int) -> int:
    """Bytes of KV cache and states for a node with weights on disk.

    one: of a sequence of full context. Several sequences read the same weights in a step, and so
    gain most; but what their cache takes of the memory is read from disk instead.
    """
    return max(one, min(sequences * one, int(memory_bytes * _CACHE_PART)))


def room_for(
    spec: ModelSpec,
    plan: Plan,
    kv_type: str,
    page_size: int,
    context: int,
    sequences: int,
    most_running: int,
    nodes: Sequence[NodeFacts],
    *,
    on_disk: bool = False,
) -> Room:
    """Room for `sequences` of `context` positions, or fewer if memory is short.

    States are for `most_running` sequences, as far as they leave room for the pages of at least the
    sequences of full context that fit. nodes: in the plan's order. on_disk: where a node's memory
    is too small, weights may lie on disk; then its room is that of `disk_cache_bytes`. Raises
    HearthError OUT_OF_MEMORY if one has no room for a single sequence; the metadata has the node's
    number, stage and rank.
    """
    least = -(-context // page_size)
    pages, states = least * sequences, most_running
    for number, (node, facts) in enumerate(zip(plan.nodes, nodes, strict=True)):
        per_page = node.kv_page_bytes(spec, kv_type, page_size)
        state = node.state_bytes(spec)
        one = least * per_page + state
        held, left = node.weight_bytes, facts.memory_bytes - node.weight_bytes
        if left < one and on_disk:
            held = least_held_bytes(node)
            wanted = disk_cache_bytes(one, facts.memory_bytes, sequences)
            left = min(wanted, facts.memory_bytes - held)
        if left < one:
            also = f" and {format_size(state)} for a sequence's state" if state else ""
            raise HearthError(
                Reason.OUT_OF_MEMORY,
                f"{facts.name} has {format_size(facts.memory_bytes)} of memory for its shard of "
                f"{spec.name}, which needs {format_size(held)} for weights and "
                f"{format_size(least * per_page)} for {context} positions of KV cache{also}: use "
                "more nodes, smaller --weights, a smaller --context or other --shares",
                {
                    "node": number,
                    "stage": node.place.stage,
                    "rank": node.place.rank,
                    "roomBytes": facts.memory_bytes,
                    "weightBytes": node.weight_bytes,
                },
            )
        if state:
            whole = min(sequences, left // one)
            states = min(states, (left - whole * least * per_page) // state)
        if per_page:
            pages = min(pages, (left - states * state) // per_page)
    return Room(pages, states)
