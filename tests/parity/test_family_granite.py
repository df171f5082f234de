"""Granite 3 and 4 against transformers."""

from pathlib import Path

import family_parity
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

FACTORS = {
    "head_dim": 8,
    "embedding_multiplier": 5.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.7,
    "logits_scaling": 1.5,
}
ODD = {
    **FACTORS,
    "hidden_size": 72,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 77,
    "tie_word_embeddings": True,
}
EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
HYBRID = {
    "layer_types": ["full_attention"] * 2,
    "mamba_n_heads": 8,
    "shared_intermediate_size": 88,
}
CASES = {
    "granite": Case("granite", FACTORS),
    "granite, odd sizes, tied": Case(
        "granite", {**ODD, "attention_bias": True, "mlp_bias": True}, shares=(1, 2, 1)
    ),
    "granitemoe": Case("granitemoe", {**FACTORS, **EXPERTS}, nodes=(1, 3)),
    "granitemoe, odd sizes, tied": Case(
        "granitemoe", {**FACTORS, **EXPERTS, **ODD}, nodes=(1, 3), shares=(2, 1, 3)
    ),
    "granitemoehybrid": Case(
        "granitemoehybrid",
        {**FACTORS, **HYBRID, "num_local_experts": 0, "position_embedding_type": "rope"},
    ),
    "granitemoehybrid, odd sizes, experts, no positions, tied": Case(
        "granitemoehybrid", {**ODD, **HYBRID, **EXPERTS}, shares=(1, 1, 2), dtype="bfloat16"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))
