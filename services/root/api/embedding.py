"""Vectors of several texts: each is a request of its own to the engine, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

# Texts in one request, as OpenAI has it.
MAX_INPUTS = 2048
# Texts of one request in the engine at once: enough for full steps, and the queue has room for
# other clients.
_AT_ONCE = 8

T = TypeVar("T")
F32: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Vector:
    """The vector of a text, f32 [hidden_size], as it is pooled; and the text's tokens."""

    values: F32
    tokens: int

    def cut(self, dimensions: int) -> Vector:
        """The same with its first numbers only."""
        return Vector(self.values[:dimensions], self.tokens)

    def normalised(self, order: int = 2) -> F32:
        """The values divided by their norm of this order; -1: as they are."""
        norm = float(np.linalg.norm(self.values.astype(np.float64), order)) if order > 0 else 0.0
        return (self.values / norm).astype(np.float32) if norm else self.values


async def in_turn(work: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """The results in order, a few at a time. The first error ends the rest, and is raised."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def run(each: Callable[[], Awaitable[T]]) -> T:
        async with places:
            return await each()

    tasks = [asyncio.ensure_future(run(each)) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
