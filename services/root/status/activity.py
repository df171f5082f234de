"""The root's work so far, out of its metrics, for people who watch it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry

# Series that are read; collecting all would also read the process's own figures.
_NAMES = (
    "hearth_tokens_total",
    "hearth_kv_pages",
    "hearth_queue_depth",
    "hearth_running_sequences",
    "hearth_node_compute_seconds_total",
    "hearth_node_sync_seconds_total",
)


class HasRegistry(Protocol):
    """hearth.common.metrics.RootMetrics."""

    @property
    def registry(self) -> CollectorRegistry: ...


@dataclass(frozen=True, slots=True)
class NodeActivity:
    """A node's seconds of computing and of waiting in syncs since the root started."""

    name: str
    compute_seconds: float
    sync_seconds: float


@dataclass(frozen=True, slots=True)
class Activity:
    """Sequences and pages now, tokens since the root started; nodes in rank order."""

    running: int = 0
    waiting: int = 0
    pages_used: int = 0
    pages_free: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    nodes: tuple[NodeActivity, ...] = ()


def read(metrics: HasRegistry) -> Activity:
    """The activity now."""
    values: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in _NAMES}
    for metric in metrics.registry.restricted_registry(_NAMES).collect():
        for sample in metric.samples:
            if sample.name in values:
                values[sample.name][_key(sample.labels)] = sample.value

    def count(name: str, *labels: str) -> int:
        return int(values[name].get(labels, 0))

    sync = values["hearth_node_sync_seconds_total"]
    compute = values["hearth_node_compute_seconds_total"]
    return Activity(
        running=count("hearth_running_sequences"),
        waiting=count("hearth_queue_depth"),
        pages_used=count("hearth_kv_pages", "used"),
        pages_free=count("hearth_kv_pages", "free"),
        prompt_tokens=count("hearth_tokens_total", "prompt"),
        completion_tokens=count("hearth_tokens_total", "completion"),
        nodes=tuple(
            NodeActivity(key[1], compute[key], sync.get(key, 0.0))
            for key in sorted(compute, key=lambda key: int(key[0]))
        ),
    )


def _key(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The values of a sample's labels: of a node its rank, then its name."""
    if "rank" in labels:
        return labels["rank"], labels["node"]
    return tuple(labels.values())
