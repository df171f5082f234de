"""Phi-3 and Phi-4 against transformers."""

from pathlib import Path

import family_parity
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

# Pairs of the heads that rotate.
SHORT, LONG = [1.0, 1.05, 1.2], [1.0, 2.5, 7.0]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": SHORT,
    "long_factor": LONG,
}
LONG_CASE = {
    "hidden_size": 72,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 77,
    "tie_word_embeddings": True,
    "rope_parameters": LONGROPE,
}
CASES = {
    "phi3": Case("phi3", {"head_dim": 8, "sliding_window": 11}),
    "phi3, longrope, short": Case(
        "phi3", {**LONG_CASE, "original_max_position_embeddings": 50}, shares=(1, 2, 1)
    ),
    "phi3, longrope, long": Case(
        "phi3",
        {**LONG_CASE, "original_max_position_embeddings": 16},
        nodes=(1, 3),
        dtype="bfloat16",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))
