"""Numbers of published models, as their config.json gives them: shapes of random models."""

_LLAMA_31 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _llama(sizes: tuple[int, ...], factor: float = 0.0, **more: object) -> dict[str, object]:
    """A Llama 3 config.json; factor: of Llama 3.1's rope scaling."""
    config: dict[str, object] = {"model_type": "llama", "rms_norm_eps": 1e-5}
    config |= {"rope_theta": 500000.0, "max_position_embeddings": 8192}
    config |= dict(zip(_SIZES, sizes, strict=True))
    if factor:
        config |= {"rope_scaling": _LLAMA_31 | {"factor": factor}}
        config |= {"max_position_embeddings": 131072}
    return config | more


_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size",
)  # fmt: skip

# https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json, and below
# https://huggingface.co/zai-org/GLM-4.7-Flash/blob/main/config.json
_DEEPSEEK_V3: dict[str, object] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "intermediate_size": 18432,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
_GLM_47_FLASH: dict[str, object] = {
    "model_type": "glm4_moe_lite",
    "hidden_size": 2048,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "intermediate_size": 10240,
    "vocab_size": 154880,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1536,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.8,
}
# https://huggingface.co/openai-community/gpt2-xl/blob/main/config.json
_GPT2_XL: dict[str, object] = {
    "model_type": "gpt2",
    "n_embd": 1600,
    "n_head": 25,
    "n_layer": 48,
    "n_positions": 1024,
    "vocab_size": 50257,
}
# https://huggingface.co/Qwen/Qwen3-30B-A3B/blob/main/config.json
_QWEN3_30B: dict[str, object] = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
# https://huggingface.co/Qwen/Qwen3.6-35B-A3B/blob/main/config.json, its text_config.
_QWEN_36_35B: dict[str, object] = {
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000000.0,
}
# https://huggingface.co/google/gemma-4-26B-A4B-it/blob/main/config.json, its text_config.
_GEMMA_4_26B: dict[str, object] = {
    "model_type": "gemma4_text",
    "hidden_size": 2816,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_global_key_value_heads": 2,
    "head_dim": 256,
    "global_head_dim": 512,
    "attention_k_eq_v": True,
    "sliding_window": 1024,
    "intermediate_size": 2112,
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "vocab_size": 262144,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
# https://huggingface.co/mistralai/Mixtral-8x7B-v0.1/blob/main/config.json
_MIXTRAL_8X7B: dict[str, object] = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
}


def _gpt_oss(layers: int, experts: int) -> dict[str, object]:
    """https://huggingface.co/openai/gpt-oss-20b/blob/main/config.json, and gpt-oss-120b."""
    return {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2880,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    }


# The numbers of each model's published config.json.
SHAPES: dict[str, dict[str, object]] = {
    "tinyllama-1.1b": _llama(
        (2048, 22, 32, 4, 64, 5632, 32000), rope_theta=10000.0, max_position_embeddings=2048
    ),
    "smollm2-135m": _llama(
        (576, 30, 9, 3, 64, 1536, 49152), rope_theta=100000.0, tie_word_embeddings=True
    ),
    "llama-3.2-1b": _llama((2048, 16, 32, 8, 64, 8192, 128256), 32.0, tie_word_embeddings=True),
    "llama-3.2-3b": _llama((3072, 28, 24, 8, 128, 8192, 128256), 32.0, tie_word_embeddings=True),
    "llama-3-8b": _llama((4096, 32, 32, 8, 128, 14336, 128256)),
    "llama-3.1-70b": _llama((8192, 80, 64, 8, 128, 28672, 128256), 8.0),
    "llama-3.1-405b": _llama((16384, 126, 128, 8, 128, 53248, 128256), 8.0),
    "gpt2-xl": _GPT2_XL,
    "mixtral-8x7b": _MIXTRAL_8X7B,
    "qwen3-30b-a3b": _QWEN3_30B,
    "qwen3.6-35b-a3b": _QWEN_36_35B,
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
    "gemma-4-26b-a4b": _GEMMA_4_26B,
    "deepseek-v3": _DEEPSEEK_V3,
    "glm-4.7-flash": _GLM_47_FLASH,
}
