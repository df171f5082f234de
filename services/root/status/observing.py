"""Sets the metrics of the cluster from the statuses that its board shows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from hearth.common.metrics import NodeFacts
from hearth.v1 import root_pb2

_PREFIX = "NODE_STATE_"


class ClusterMetrics(Protocol):
    """The part of hearth.common.metrics that is about the cluster."""

    def cluster(
        self, serving: bool, epoch: int, workers: dict[str, int], lost: int, formed: bool
    ) -> None: ...

    def nodes(self, nodes: list[NodeFacts]) -> None: ...


class Observer:
    """Subscribe it to the cluster; it may be called in any thread."""

    def __init__(self, metrics: ClusterMetrics, look: Callable[[], root_pb2.ClusterStatus]) -> None:
        """look: the status now."""
        self._metrics = metrics
        self._look = look
        self._lock = threading.Lock()
        self._serving = False
        self._lost: frozenset[str] = frozenset()

    def __call__(self, _: object = None) -> None:
        """The status has changed. The argument is not read: the changes of two threads may come in
        any order, and the newest status must be the last one counted."""
        with self._lock:
            status = self._look()
            serving = status.state == root_pb2.CLUSTER_STATE_SERVING
            # The root is a node too, but not a worker.
            workers = [node for node in status.nodes if node.address != "local"]
            states = dict.fromkeys(root_pb2.NodeState.values(), 0)
            states.update(Counter(node.state for node in workers))
            lost = frozenset(
                node.address for node in workers if node.state == root_pb2.NODE_STATE_LOST
            )
            self._metrics.cluster(
                serving,
                status.epoch,
                {
                    root_pb2.NodeState.Name(state).removeprefix(_PREFIX).lower(): count
                    for state, count in states.items()
                    if state != root_pb2.NODE_STATE_UNSPECIFIED
                },
                len(lost - self._lost),
                serving and not self._serving,
            )
            if serving:
                self._metrics.nodes(
                    [
                        NodeFacts(node.info.name or node.address, node.weight_bytes)
                        for node in sorted(
                            status.nodes,
                            key=lambda node: (node.placement.stage, node.placement.rank),
                        )
                        if node.state == root_pb2.NODE_STATE_SERVING
                    ]
                )
            self._serving, self._lost = serving, lost
