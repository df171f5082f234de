"""Weight types and mixes of them by name: one list everywhere, and llama.cpp's choices."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from converter_builders import tiny_spec

from hearth.common import types
from hearth.converter import blocks, mixes, rare_types, weights
from hearth.converter.errors import ModelError
from hearth.converter.mixes import check_weights, mixed_type
from hearth.converter.weights import effective_type

# Types by layer of each tensor ("2xq5_k 22xq4_k"), as llama.cpp's quantizer (of llama-cpp-python
# 0.3.36) chose them for GGUF files of random weights in these shapes.
KNOWN = json.loads((Path(__file__).parents[1] / "known" / "mixes.json").read_text())


def test_the_tables_of_types_agree() -> None:
    own = [name for name in weights.FORMATS if name not in rare_types.SIZES]
    assert own == list(types.WEIGHT)
    assert list(types.NORM) == list(blocks.NORMS)
    assert list(types.ACTIVATION) == list(blocks.ACTIVATIONS)
    assert list(types.ROUTER) == list(blocks.ROUTERS)
    assert weights.ALIASES == types.WEIGHT_ALIASES
    assert set(mixes.WEIGHTS) == set(types.WEIGHT_CHOICES)
    assert set(rare_types.NEAREST) == set(rare_types.SIZES)
    assert set(rare_types.NEAREST.values()) <= set(own)


@pytest.mark.parametrize(
    "known", KNOWN, ids=lambda known: "-".join(map(str, known["shape"].values()))
)
def test_a_mix_has_the_types_that_llama_cpp_chooses(known: dict[str, Any]) -> None:
    spec = tiny_spec(**known["shape"])
    assert set(known["types"]) == set(mixes._MIXES) - {"mxfp4"}
    for mix, parts in known["types"].items():
        found: dict[str, list[str]] = {part: [] for part in parts}
        for tensor in spec.tensors:
            if tensor.part in found and not tensor.stored_as:
                kind = mixed_type(mix, spec, tensor)
                found[tensor.part].append(effective_type(kind, tensor.shape[1]))
        written = {
            part: " ".join(f"{len(list(same))}x{kind}" for kind, same in groupby(kinds))
            for part, kinds in found.items()
        }
        assert written == parts, mix


def test_names_of_weights() -> None:
    assert [check_weights(name) for name in ("q40", "q80", "q4_k", "q3_k", "q5_k")] == [
        "q4_0",
        "q8_0",
        "q4_k_m",
        "q3_k_m",
        "q5_k_m",
    ]
    with pytest.raises(ModelError, match=r"'q9' is unknown; choose one of f32, .*q4_k_m"):
        check_weights("q9")
