"""Measured costs of the links between the ranks of a stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkCosts:
    """Costs of the slowest link, from which all ranks of a mesh choose the same algorithm."""

    latency_seconds: float
    bytes_per_second: float
    # Largest sum that ranks send to each other whole; larger ones are scattered and gathered.
    # None: every sum is sent whole.
    direct_bytes: int | None
