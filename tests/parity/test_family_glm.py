"""GLM-4 against transformers."""

from pathlib import Path

import family_parity
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

ODD = {
    "hidden_size": 54,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 12,
    "intermediate_size": 77,
    "tie_word_embeddings": True,
}
CASES = {
    "glm": Case("glm", {"attention_bias": True}),
    "glm, odd sizes, tied": Case("glm", {**ODD, "attention_bias": False}, shares=(2, 1, 1)),
    "glm4": Case("glm4", {"attention_bias": True}, dtype="bfloat16"),
    "glm4, odd sizes, tied": Case(
        "glm4",
        {**ODD, "rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 0.5}},
        shares=(1, 2, 3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))
