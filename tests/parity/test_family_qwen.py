"""Qwen2, Qwen3 and Qwen3-MoE against transformers."""

from pathlib import Path

import family_parity
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

ODD = {
    "hidden_size": 45,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "intermediate_size": 77,
    "tie_word_embeddings": True,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
CASES = {
    "qwen2": Case("qwen2", {"head_dim": 8}),
    "qwen2, window, tied": Case(
        "qwen2",
        {
            "hidden_size": 96,
            "head_dim": 12,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
        shares=(1, 2, 1),
    ),
    "qwen3": Case("qwen3", {}),
    "qwen3, odd sizes, tied": Case("qwen3", ODD, shares=(2, 3, 1), dtype="bfloat16"),
    "qwen3_moe": Case("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3_moe, some layers dense": Case(
        "qwen3_moe",
        {
            **ODD,
            **EXPERTS,
            "moe_intermediate_size": 44,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
        },
        shares=(1, 1, 3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))
