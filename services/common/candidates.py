"""Candidates: the few tokens of each output row among which a sampler chooses.

Each rank finds those of its own part of the vocabulary; whole rows need not travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np

from hearth import _native
from hearth.common.allowed import F32, Ids, Mask, only

# Number of candidates of a draw with min-p, of which any may be chosen: mostly about ln(n) of n
# tokens, and more than this in one of 10^26 draws.
DRAWN = 64
# Of one with top-p too.
OF_NUCLEUS = _native.NUCLEUS_TOKENS + DRAWN


class Draw(NamedTuple):
    """A draw by the Gumbel-max trick; native/include/hearth/sampler.h defines it."""

    temperature: float
    seed: int
    # Draws of the sequence before it.
    number: int
    # It draws from a nucleus, which needs counts of the row's logits too.
    nucleus: bool = False


# Output rows whose candidates are limited, and the tokens that they may be.
Allowed: TypeAlias = Mapping[int, Mask]
NO_LIMITS: Allowed = MappingProxyType({})
Draws: TypeAlias = Mapping[int, Draw]
NO_DRAWS: Draws = MappingProxyType({})
# Of a row with a nucleus: each rank's best logit, f32 [ranks], and the counts of its logits, u32
# [ranks, LOGIT_STEPS].
Tails: TypeAlias = tuple[F32, Ids]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tokens that a step returns of each output row; `allowed` and `draws` count these from 0."""

    # Number of tokens, or more; 0: whole rows.
    count: int = 0
    # The tokens among which they are found; all of other rows.
    allowed: Allowed = field(default_factory=lambda: NO_LIMITS)
    # Rows of which those are found that a draw may choose; of others the most likely ones.
    draws: Draws = field(default_factory=lambda: NO_DRAWS)

    @property
    def nuclei(self) -> tuple[int, ...]:
        """The rows that draw from a nucleus, in the order of `draws`."""
        return tuple(row for row, draw in self.draws.items() if draw.nucleus)


WHOLE_ROWS = Candidates()


class Part(NamedTuple):
    """Logits of one rank: f32 [rows, n]."""

    logits: F32
    # u32 token ids of candidates; None for whole rows.
    ids: Ids | None = None
    # Of rows with a nucleus: the counts of the rank's logits, u32 [LOGIT_STEPS].
    counts: Mapping[int, Ids] = MappingProxyType({})


def find(logits: F32, wanted: Candidates, first_id: int) -> Part:
    """Candidates of f32 [rows, n] logits of the tokens from first_id on.

    As many as `wanted.count`, which is above 0, but at most n. Of a nucleus it is OF_NUCLEUS.
    """
    count = min(wanted.count, logits.shape[1])
    limited = only(logits, wanted.allowed, first_id)
    rows = len(limited)
    values, ids = np.empty((rows, count), np.float32), np.empty((rows, count), np.uint32)
    counts: dict[int, Ids] = {}
    likeliest = [row for row in range(rows) if row not in wanted.draws]
    if len(likeliest) == rows:
        values, ids = _native.best(limited, count, first_id)
    elif likeliest:
        values[likeliest], ids[likeliest] = _native.best(limited[likeliest], count, first_id)
    for row, (temperature, seed, number, nucleus) in wanted.draws.items():
        values[row], ids[row], counted = _native.drawn(
            limited[row], count, first_id, temperature, seed, number, nucleus
        )
        if nucleus:
            counts[row] = counted
    return Part(values, ids, counts)
