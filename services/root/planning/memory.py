"""The size of the KV cache that fits besides the weights."""

from collections.abc import Sequence

from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size
from hearth.converter.spec import ModelSpec
from hearth.root.planning.facts import NodeFacts
from hearth.root.planning.plan import Plan


def pages_for(
    spec: ModelSpec,
    plan: Plan,
    kv_type: str,
    page_size: int,
    context: int,
    sequences: int,
    nodes: Sequence[NodeFacts],
) -> int:
    """Pages of KV cache: for `sequences` of `context` positions, or fewer if memory is short.

    nodes: in the plan's order. Raises HearthError OUT_OF_MEMORY if one has no room for a single
    sequence; the metadata has the node's number, stage and rank.
    """
    least = -(-context // page_size)
    pages = least * sequences
    for number, (node, facts) in enumerate(zip(plan.nodes, nodes, strict=True)):
        per_page = node.kv_page_bytes(spec, kv_type, page_size)
        left = facts.memory_bytes - node.weight_bytes
        if left < least * per_page:
            raise HearthError(
                Reason.OUT_OF_MEMORY,
                f"{facts.name} has {format_size(facts.memory_bytes)} of memory for its shard of "
                f"{spec.name}, which needs {format_size(node.weight_bytes)} for weights and "
                f"{format_size(least * per_page)} for {context} positions of KV cache: use more "
                "nodes, smaller --weights, a smaller --context or other --shares",
                {
                    "node": number,
                    "stage": node.place.stage,
                    "rank": node.place.rank,
                    "roomBytes": facts.memory_bytes,
                    "weightBytes": node.weight_bytes,
                },
            )
        pages = min(pages, left // per_page)
    return pages
