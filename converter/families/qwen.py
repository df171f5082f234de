"""Qwen2, Qwen2.5, Qwen3 and Qwen3-MoE."""

from functools import partial
from typing import Any

from hearth.converter.blocks import BlockSpec, ExpertsSpec, FeedForwardSpec
from hearth.converter.families.base import Family, GgufFacts, Names
from hearth.converter.families.common import (
    GGUF_TENSORS,
    TENSORS,
    activation,
    attention,
    feed_forward,
    gguf_attention,
    gguf_experts,
    gguf_has_bias,
    gguf_model,
    gguf_rope,
    head_size,
    layer_count,
    model,
    rope,
)
from hearth.converter.families.fused import turned_experts
from hearth.converter.families.layers import (
    needed_window,
    window_size,
    windowed_layers,
    with_defaults,
)
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec

# Of transformers, for files that say nothing; a null is for none.
_QWEN2 = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}
_QWEN3 = _QWEN2 | {"head_dim": 128}
_QWEN3_MOE = _QWEN2 | {"num_key_value_heads": 4}


def _windows(config: Settings) -> tuple[list[bool], int]:
    """True for each layer whose attention has a window; and the window."""
    layers = layer_count(config)
    first = config.integer("max_window_layers", 28)
    used = config.boolean("use_sliding_window", False)
    given = used and "sliding_window" in config
    windowed = windowed_layers(config, layers, [given and n >= first for n in range(layers)])
    # Without use_sliding_window, transformers drops the size.
    return windowed, needed_window(config, windowed) if used else 0


def _dense(config: Settings, name: str, architecture: str, **more: Any) -> ModelSpec:
    inner = feed_forward(config)
    windowed, window = _windows(config)
    kinds = [
        BlockSpec(attention(config, **more), inner),
        BlockSpec(attention(config, window=window, **more), inner),
    ]
    order = [int(each) for each in windowed]
    return model(config, name, architecture, kinds, [rope(config, head_size(config))], order)


def _qwen2(config: Settings, name: str) -> ModelSpec:
    return _dense(with_defaults(config, _QWEN2), name, "qwen2", bias=True)


def _qwen3(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _QWEN3)
    bias = config.boolean("attention_bias", False)
    return _dense(config, name, "qwen3", bias=bias, output_bias=bias, head_norm=True)


def _qwen3_moe(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _QWEN3_MOE)
    bias = config.boolean("attention_bias", False)
    window = window_size(config) if config.boolean("use_sliding_window", False) else 0
    mixer = attention(config, bias=bias, output_bias=bias, head_norm=True, window=window)
    # Its name in transformers of today; num_experts in the files.
    count = config.integer("num_experts", config.integer("num_local_experts", 128))
    experts = ExpertsSpec(
        count,
        config.integer("num_experts_per_tok", 8),
        FeedForwardSpec(config.integer("moe_intermediate_size"), activation(config)),
        normalize=config.boolean("norm_topk_prob", False),
    )
    layers = layer_count(config)
    step = config.integer("decoder_sparse_step", 1)
    dense = config.numbered("mlp_only_layers")
    sparse = [
        layer not in dense and count > 0 and (layer + 1) % max(step, 1) == 0
        for layer in range(layers)
    ]
    kinds = [BlockSpec(mixer, None, experts), BlockSpec(mixer, feed_forward(config))]
    order = [int(not each) for each in sparse]
    return model(config, name, "qwen3moe", kinds, [rope(config, head_size(config))], order)


def _gguf(metadata: Settings, name: str, facts: GgufFacts, architecture: str) -> ModelSpec:
    mixer = gguf_attention(
        metadata,
        bias=gguf_has_bias(facts),
        output_bias=facts.has("blk.0.attn_output.bias"),
        head_norm=facts.has("blk.0.attn_q_norm.weight"),
    )
    if metadata.integer("expert_count", 0):
        block = BlockSpec(mixer, None, gguf_experts(metadata))
    else:
        block = BlockSpec(mixer, FeedForwardSpec(metadata.integer("feed_forward_length")))
    ropes = [gguf_rope(metadata, mixer.key_size, facts)]
    return gguf_model(metadata, name, architecture, facts, [block], ropes)


_EXPERTS = "model.layers.{layer}.mlp.experts."
# Fused in Qwen3-VL-MoE.
_QWEN3_MOE_TENSORS: Names = {
    **TENSORS,
    "experts_w1": turned_experts(_EXPERTS + "gate_up_proj", 2, 0, TENSORS["experts_w1"]),
    "experts_w3": turned_experts(_EXPERTS + "gate_up_proj", 2, 1, TENSORS["experts_w3"]),
    "experts_w2": turned_experts(_EXPERTS + "down_proj", 1, 0, TENSORS["experts_w2"]),
}

FAMILIES = (
    Family(
        name="Qwen2",
        model_types=("qwen2",),
        classes=("Qwen2ForCausalLM",),
        reads=("layer_types", "sliding_window"),
        config=_qwen2,
        tensors=TENSORS,
        architectures=("qwen2", "qwen2vl"),
        gguf=partial(_gguf, architecture="qwen2"),
        gguf_tensors=GGUF_TENSORS,
    ),
    Family(
        name="Qwen3",
        model_types=("qwen3",),
        classes=("Qwen3ForCausalLM",),
        reads=("layer_types", "sliding_window"),
        config=_qwen3,
        tensors=TENSORS,
        architectures=("qwen3", "qwen3vl"),
        gguf=partial(_gguf, architecture="qwen3"),
        gguf_tensors=GGUF_TENSORS,
    ),
    Family(
        name="Qwen3-MoE",
        model_types=("qwen3_moe",),
        classes=("Qwen3MoeForCausalLM",),
        reads=("sliding_window",),
        config=_qwen3_moe,
        tensors=_QWEN3_MOE_TENSORS,
        architectures=("qwen3moe", "qwen3vlmoe"),
        gguf=partial(_gguf, architecture="qwen3moe"),
        gguf_tensors=GGUF_TENSORS,
    ),
)
