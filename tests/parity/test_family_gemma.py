"""Gemma 2, 3 and 4 against transformers."""

from pathlib import Path
from typing import Any

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
_FULL, _WINDOW = "full_attention", "sliding_attention"
# Of both kinds of layers: heads of other sizes, and rotations of other kinds.
GEMMA4 = {
    "num_hidden_layers": 4,
    "layer_types": [_WINDOW, _FULL, _WINDOW, _FULL],
    "sliding_window": 7,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 9.0,
}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 3,
    "moe_intermediate_size": 40,
}
INPUTS = {
    "hidden_size_per_layer_input": 24,
    "vocab_size_per_layer_input": 128,
    "num_hidden_layers": 7,
    "layer_types": [_WINDOW, _WINDOW, _FULL, _WINDOW, _FULL, _WINDOW, _FULL],
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
}


def _vary(name: str, parameter: Any) -> bool:
    """Numbers that transformers makes all ones: of layers, of the router and of its experts."""
    if not name.endswith(("layer_scalar", "router.scale", "per_expert_scale")):
        return False
    parameter.uniform_(0.5, 1.5)
    return True


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
    "gemma4_text, dense": Case(
        "gemma4_text",
        {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 2},
        shares=(2, 1, 1),
        fill=_vary,
    ),
    "gemma4_text, dense, odd sizes, untied": Case(
        "gemma4_text",
        {
            **GEMMA4,
            **ODD,
            "global_head_dim": 18,
            "attention_bias": True,
            "rope_parameters": {
                _FULL: {
                    "rope_type": "proportional",
                    "partial_rotary_factor": 0.6,
                    "factor": 3.0,
                    "rope_theta": 5e3,
                },
                _WINDOW: {"rope_type": "default", "rope_theta": 1e3},
            },
            "tie_word_embeddings": False,
        },
        shares=(1, 3, 2),
        dtype="bfloat16",
        fill=_vary,
    ),
    "gemma4_text, experts": Case(
        "gemma4_text",
        {**GEMMA4, **EXPERTS, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
        fill=_vary,
    ),
    "gemma4_text, experts, odd sizes, untied": Case(
        "gemma4_text",
        {
            **GEMMA4,
            **ODD,
            **EXPERTS,
            "num_experts": 5,
            "top_k_experts": 5,
            "moe_intermediate_size": 13,
            "global_head_dim": 14,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
        shares=(2, 1, 1),
        fill=_vary,
    ),
    "gemma4_text, inputs of layers": Case("gemma4_text", {**GEMMA4, **INPUTS}, fill=_vary),
    "gemma4_text, inputs of layers, odd sizes, untied": Case(
        "gemma4_text",
        {
            **GEMMA4,
            **ODD,
            **INPUTS,
            "num_kv_shared_layers": 4,
            "hidden_size_per_layer_input": 11,
            "use_double_wide_mlp": False,
            "global_head_dim": 22,
            "tie_word_embeddings": False,
        },
        shares=(1, 1, 3),
        dtype="bfloat16",
        fill=_vary,
    ),
    "gemma4, images and sound": Case(
        "gemma4",
        {
            "text_config": {**family_parity.COMMON, **GEMMA4, **INPUTS, "pad_token_id": 0},
            "vision_config": {**VISION, "head_dim": 8, "position_embedding_size": 64},
            "audio_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "subsampling_conv_channels": [4, 4],
                "output_proj_dims": 24,
            },
        },
        nodes=(1, 2),
        shard_size="100KB",
        auto="AutoModelForImageTextToText",
        fill=_vary,
    ),
    "gemma4_unified_text": Case(
        "gemma4_unified_text",
        {
            key: value
            for key, value in (GEMMA4 | {"attention_k_eq_v": True}).items()
            if key != "hidden_size_per_layer_input"
        },
        nodes=(1, 3),
        fill=_vary,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))
