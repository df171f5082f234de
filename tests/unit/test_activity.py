"""The root's work, as its metrics count it."""

from __future__ import annotations

from hearth.common.metrics import NodeFacts, RootMetrics
from hearth.root.status.activity import Activity, NodeActivity, read


def test_nothing_happened_yet() -> None:
    assert read(RootMetrics()) == Activity()


def test_nodes_are_in_rank_order() -> None:
    metrics = RootMetrics()
    names = [f"node-{rank}" for rank in range(12)]
    metrics.nodes([NodeFacts(name, 1) for name in names])
    metrics.node_times([(float(rank), 0.5) for rank in range(12)])
    metrics.queue(waiting=3, running=2)
    metrics.kv_pages(used=5, free=7)
    metrics.first_token(0.1)
    metrics.next_token(0.1)
    found = read(metrics)
    assert (found.waiting, found.running, found.pages_used, found.pages_free) == (3, 2, 5, 7)
    assert found.completion_tokens == 2
    assert found.nodes == tuple(
        NodeActivity(name, float(rank), 0.5) for rank, name in enumerate(names)
    )
