"""A small config.json of every family that converter/families reads, by its model_type."""

from typing import Any

Config = dict[str, Any]

_COMMON: Config = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_EXPERTS: Config = {"num_local_experts": 6, "num_experts_per_tok": 2}
_FULL, _WINDOW = "full_attention", "sliding_attention"
_WINDOWS: Config = {"sliding_window": 16, "layer_types": [_WINDOW, _WINDOW, _WINDOW, _FULL]}
_YARN: Config = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_GEMMA3: Config = {
    **_WINDOWS,
    "query_pre_attn_scalar": 8,
    "rope_parameters": {
        _FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        _WINDOW: {"rope_type": "default", "rope_theta": 1e4},
    },
}
_GEMMA4: Config = {
    "sliding_window": 16,
    "layer_types": [_WINDOW, _FULL, _WINDOW, _FULL],
    "global_head_dim": 16,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 300,
    "rope_parameters": {
        _FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        _WINDOW: {"rope_type": "default", "rope_theta": 1e4},
    },
}
_GRANITE: Config = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
_LATENT: Config = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
_DELTA: Config = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
}
_DELTA_EXPERTS: Config = {
    **_DELTA,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 48,
    "partial_rotary_factor": 0.25,
    "mlp_only_layers": [1],
    "decoder_sparse_step": 1,
}
_OWN: dict[str, Config] = {
    "llama": {"rope_scaling": _YARN},
    "mistral": {"sliding_window": 16},
    "ministral": _WINDOWS,
    "ministral3": {"rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.1}},
    "mistral3": {"text_config": {**_COMMON, "model_type": "mistral"}},
    "mixtral": _EXPERTS,
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "qwen3": {"attention_bias": False},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
    "gemma2": {**_WINDOWS, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 50.0},
    "gemma3": {"text_config": {**_COMMON, **_GEMMA3}},
    "gemma3_text": _GEMMA3,
    "gemma4": {"text_config": {**_COMMON, **_GEMMA4, "model_type": "gemma4_text"}},
    "gemma4_text": {
        **_GEMMA4,
        "enable_moe_block": True,
        "num_experts": 6,
        "top_k_experts": 2,
        "moe_intermediate_size": 40,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 2,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
    },
    "gemma4_unified": {"text_config": {**_COMMON, "model_type": "gemma4_unified_text"}},
    "gemma4_unified_text": {"per_layer_config": {"3": {"head_dim": 16, "num_key_value_heads": 2}}},
    "phi3": {
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 16,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1],
            "long_factor": [1.0, 4.0],
        },
    },
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "granite": _GRANITE,
    "granitemoe": {**_GRANITE, **_EXPERTS},
    "granitemoehybrid": {
        **_GRANITE,
        **_EXPERTS,
        "layer_types": ["attention"] * 4,
        "shared_intermediate_size": 88,
    },
    "olmo2": {},
    "olmo3": _WINDOWS,
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 300},
    "gpt_oss": {**_EXPERTS, **_WINDOWS},
    "deepseek_v2": {
        **_LATENT,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "n_group": 1,
    },
    "deepseek_v3": _LATENT,
    "glm4_moe_lite": _LATENT,
    "qwen3_next": _DELTA_EXPERTS,
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe": {"text_config": {**_COMMON, **_DELTA_EXPERTS}},
}
CONFIGS: dict[str, Config] = {
    name: {"model_type": name, **({} if name == "gpt2" else _COMMON), **own}
    for name, own in _OWN.items()
}
