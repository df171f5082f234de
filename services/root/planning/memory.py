"""The KV cache and the sequences' states that fit besides the weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size
from hearth.converter.spec import ModelSpec
from hearth.root.planning.facts import NodeFacts
from hearth.root.planning.plan import NodePlan, Plan


@dataclass(frozen=True, slots=True)
class Room:
    """Pages of KV cache, and sequences that have a state of recurrent mixers at the same time."""

    pages: int
    sequences: int


def needed_bytes(
    node: NodePlan, spec: ModelSpec, kv_type: str, page_size: int, context: int
) -> int:
    """Bytes that a node needs at least: weights, and one sequence of `context` positions."""
    pages = -(-context // page_size)
    return (
        node.weight_bytes
        + pages * node.kv_page_bytes(spec, kv_type, page_size)
        + (node.state_bytes(spec))
    )


def room_for(
    spec: ModelSpec,
    plan: Plan,
    kv_type: str,
    page_size: int,
    context: int,
    sequences: int,
    most_running: int,
    nodes: Sequence[NodeFacts],
) -> Room:
    """Room for `sequences` of `context` positions, or fewer if memory is short.

    States are for `most_running` sequences, as far as they leave room for the pages of at least the
    sequences of full context that fit. nodes: in the plan's order. Raises HearthError OUT_OF_MEMORY
    if one has no room for a single sequence; the metadata has the node's number, stage and rank.
    """
    least = -(-context // page_size)
    pages, states = least * sequences, most_running
    for number, (node, facts) in enumerate(zip(plan.nodes, nodes, strict=True)):
        per_page = node.kv_page_bytes(spec, kv_type, page_size)
        state = node.state_bytes(spec)
        left = facts.memory_bytes - node.weight_bytes
        one = least * per_page + state
        if left < one:
            also = f" and {format_size(state)} for a sequence's state" if state else ""
            raise HearthError(
                Reason.OUT_OF_MEMORY,
                f"{facts.name} has {format_size(facts.memory_bytes)} of memory for its shard of "
                f"{spec.name}, which needs {format_size(node.weight_bytes)} for weights and "
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
