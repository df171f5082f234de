"""OLMo 2 and 3 against transformers."""

from pathlib import Path

import family_parity
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

ODD = {
    "hidden_size": 54,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 6,
    "intermediate_size": 77,
    "tie_word_embeddings": True,
}
CASES = {
    "olmo2": Case("olmo2", {"head_dim": 8}),
    "olmo2, odd sizes, tied": Case(
        "olmo2", {**ODD, "attention_bias": True}, shares=(1, 2, 1), dtype="bfloat16"
    ),
    "olmo3": Case("olmo3", {"head_dim": 8, "num_hidden_layers": 4, "sliding_window": 6}),
    "olmo3, odd sizes, yarn, tied": Case(
        "olmo3",
        {
            **ODD,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 9,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 5e5,
                    "factor": 8.0,
                    "original_max_position_embeddings": 16,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
        nodes=(1, 3),
        shares=(2, 1, 1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))
