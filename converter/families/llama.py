"""Llama 2, 3, 3.1, 3.2, and models of the same shape under other names."""

from hearth.converter.blocks import BlockSpec, FeedForwardSpec
from hearth.converter.families.base import Family, GgufFacts, Names, rotary_pairs
from hearth.converter.families.common import (
    GGUF_TENSORS,
    TENSORS,
    attention,
    feed_forward,
    gguf_attention,
    gguf_experts,
    gguf_has_bias,
    gguf_model,
    gguf_rope,
    head_size,
    model,
    rope,
)
from hearth.converter.families.fused import reordered
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec


def _config(config: Settings, name: str) -> ModelSpec:
    bias = config.boolean("attention_bias", False)
    mlp_bias = config.boolean("mlp_bias", False)
    block = BlockSpec(
        attention(config, bias=bias, output_bias=bias),
        feed_forward(config, bias=mlp_bias, output_bias=mlp_bias),
    )
    return model(config, name, "llama", [block], [rope(config, head_size(config))])


def gguf_llama(
    metadata: Settings, name: str, facts: GgufFacts, architecture: str = "llama"
) -> ModelSpec:
    """A Llama, Mistral or Mixtral of GGUF metadata."""
    bias = gguf_has_bias(facts)
    mixer = gguf_attention(metadata, bias=bias, output_bias=facts.has("blk.0.attn_output.bias"))
    if metadata.integer("expert_count", 0):  # Mixtral
        block = BlockSpec(mixer, None, gguf_experts(metadata))
    else:
        block = BlockSpec(mixer, FeedForwardSpec(metadata.integer("feed_forward_length")))
    ropes = [gguf_rope(metadata, mixer.key_size, facts, betas=architecture == "mistral3")]
    return gguf_model(metadata, name, architecture, facts, [block], ropes)


# llama.cpp's converter lays the two elements of each rotary pair side by side.
PAIRED: Names = {
    part: reordered(GGUF_TENSORS[part], rotary_pairs) for part in ("wq", "wk", "bq", "bk")
}

FAMILY = Family(
    name="Llama",
    model_types=("llama",),
    classes=("LlamaForCausalLM",),
    config=_config,
    tensors=TENSORS,
    architectures=("llama",),
    gguf=gguf_llama,
    gguf_tensors={**GGUF_TENSORS, **PAIRED},
)
