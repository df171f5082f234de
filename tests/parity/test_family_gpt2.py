"""GPT-2 against transformers."""

from pathlib import Path

import family_parity
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

SMALL = {"n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 64}
CASES = {
    "gpt2": Case("gpt2", SMALL),
    "gpt2, untied, odd sizes": Case(
        "gpt2",
        {
            "n_embd": 45,
            "n_layer": 3,
            "n_head": 5,
            "n_positions": 50,
            "n_inner": 77,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
        },
        shares=(2, 1, 2),
        shard_size="60KB",
    ),
    "gpt2, scaled by layer": Case(
        "gpt2", SMALL | {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))
