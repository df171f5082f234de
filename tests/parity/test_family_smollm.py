"""SmolLM3 against transformers."""

from pathlib import Path

import family_parity
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

CASES = {
    "smollm3": Case(
        "smollm3", {"head_dim": 8, "num_hidden_layers": 5, "tie_word_embeddings": False}
    ),
    "smollm3, odd sizes, windows, tied": Case(
        "smollm3",
        {
            "hidden_size": 90,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "intermediate_size": 77,
            "num_hidden_layers": 3,
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 6,
            "attention_bias": True,
            "mlp_bias": True,
        },
        shares=(3, 2, 1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))
