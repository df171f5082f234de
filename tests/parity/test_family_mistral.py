"""Mistral, Ministral, Mixtral and the text part of Mistral 3 against transformers."""

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
    "ministral, odd sizes, tied": Case(
        "ministral",
        {
            "hidden_size": 45,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "intermediate_size": 77,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
        nodes=(1, 3),
        shares=(1, 3, 2),
    ),
    "ministral3": Case(
        "ministral3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 16.0,
                "original_max_position_embeddings": 9,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.5,
            }
        },
        shares=(1, 2, 1),
        dtype="bfloat16",
    ),
    "mistral3, images, odd sizes": Case(
        "mistral3",
        {
            "tie_word_embeddings": False,
            "text_config": {
                **family_parity.COMMON,
                "model_type": "ministral3",
                "hidden_size": 45,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "head_dim": 10,
                "intermediate_size": 77,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                    "llama_4_scaling_beta": 0.3,
                },
            },
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 8,
                "image_size": 16,
                "patch_size": 8,
            },
        },
        nodes=(1, 2),
        auto="AutoModelForImageTextToText",
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
