"""Mistral, Ministral and Mixtral against transformers."""

from pathlib import Path

import family_parity
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

CASES = {
    "mistral": Case("mistral", {"sliding_window": None}),
    "mistral, window, tied": Case(
        "mistral",
        {"sliding_window": 7, "tie_word_embeddings": True, "intermediate_size": 77},
        shares=(3, 1, 2),
    ),
    "ministral": Case(
        "ministral", {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    "mixtral": Case(
        "mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}
    ),
    "mixtral, odd sizes, tied": Case(
        "mixtral",
        {
            "hidden_size": 45,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "intermediate_size": 44,
            "num_local_experts": 3,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": True,
        },
        shares=(1, 2, 4),
        shard_size="60KB",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))
