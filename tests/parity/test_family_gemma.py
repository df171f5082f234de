"""Gemma 2 and 3 against transformers."""

from pathlib import Path

import family_parity
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

ODD = {
    "hidden_size": 54,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "intermediate_size": 77,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
CASES = {
    "gemma2": Case("gemma2", {"sliding_window": 7, "query_pre_attn_scalar": 24}),
    "gemma2, odd sizes, untied": Case(
        "gemma2",
        {
            **ODD,
            "num_hidden_layers": 3,
            "sliding_window": 5,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 6.0,
            "tie_word_embeddings": False,
        },
        shares=(2, 1, 1),
        dtype="bfloat16",
    ),
    "gemma3_text": Case(
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "sliding_window": 9,
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gemma3_text, odd sizes, untied": Case(
        "gemma3_text",
        {
            **ODD,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 4,
            "query_pre_attn_scalar": 10,
            "final_logit_softcapping": 9.0,
            "tie_word_embeddings": False,
        },
        shares=(1, 3, 2),
    ),
    "gemma3, images": Case(
        "gemma3",
        {
            "text_config": {**family_parity.COMMON, **ODD, "sliding_window": 6},
            "vision_config": VISION,
            "mm_tokens_per_image": 1,
        },
        nodes=(1, 2),
        shard_size="100KB",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))
