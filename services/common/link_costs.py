"""Measured costs of the links between the ranks of a stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkCosts:
    """The slowest link's costs, which all ranks of a mesh choose by."""

    latency_seconds: float
    bytes_per_second: float
    # The largest sum that ranks send to each other whole; larger ones are scattered and gathered.
    # None: every sum goes direct.
    direct_bytes: int | None
