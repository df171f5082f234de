"""Phi-3 and Phi-4."""

from typing import Any

from hearth.converter.blocks import BlockSpec, FeedForwardSpec
from hearth.converter.families.base import Family, GgufFacts, Names
from hearth.converter.families.common import (
    GGUF_TENSORS,
    TENSORS,
    attention,
    feed_forward,
    gguf_attention,
    gguf_model,
    gguf_rope,
    head_size,
    model,
    rope,
)
from hearth.converter.families.fused import fused_gate_up, fused_qkv
from hearth.converter.families.layers import window_size, with_defaults
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec

_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
}


def _config(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _DEFAULTS)
    block = BlockSpec(attention(config, window=window_size(config)), feed_forward(config))
    return model(config, name, "phi3", [block], [rope(config, head_size(config))])


def _gguf(metadata: Settings, name: str, facts: GgufFacts) -> ModelSpec:
    # 0 is for none, which Phi-4 has.
    window = metadata.integer("attention.sliding_window", 0)
    mixer = gguf_attention(metadata, window=window)
    block = BlockSpec(mixer, FeedForwardSpec(metadata.integer("feed_forward_length")))
    ropes = [gguf_rope(metadata, mixer.key_size, facts)]
    return gguf_model(metadata, name, "phi3", facts, [block], ropes)


_LAYER, _BLOCK = "model.layers.{layer}.", "blk.{layer}."
_GGUF: Names = {**GGUF_TENSORS, **fused_gate_up(_BLOCK + "ffn_up")}

FAMILY = Family(
    name="Phi-3",
    model_types=("phi3",),
    classes=("Phi3ForCausalLM",),
    reads=("sliding_window", "partial_rotary_factor"),
    config=_config,
    tensors={
        **TENSORS,
        **fused_qkv(_LAYER + "self_attn.qkv_proj"),
        **fused_gate_up(_LAYER + "mlp.gate_up_proj"),
    },
    architectures=("phi3",),
    gguf=_gguf,
    gguf_tensors=_GGUF,
)
