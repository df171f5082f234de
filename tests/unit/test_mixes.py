"""Weight types and mixes of them by name: one list everywhere, and llama.cpp's choices."""

from __future__ import annotations

from hearth.common import types
from hearth.converter import mixes, rare_types, weights


def test_the_tables_of_types_agree() -> None:
    own = [name for name in weights.FORMATS if name not in rare_types.SIZES]
    assert own == list(types.WEIGHT)
    assert weights.ALIASES == types.WEIGHT_ALIASES
    assert set(mixes.WEIGHTS) <= set(types.WEIGHT_CHOICES)
    assert set(rare_types.NEAREST) == set(rare_types.SIZES)
    assert set(rare_types.NEAREST.values()) <= set(own)
