"""GLM-4: GLM-4-9B, and GLM-4 of April 2025 with norms of what layers add."""

from typing import Any

from hearth.converter.blocks import BlockSpec, FeedForwardSpec
from hearth.converter.errors import ModelError
from hearth.converter.families.base import Family, GgufFacts, Names, Recipe, rotary_pairs
from hearth.converter.families.common import (
    GGUF_TENSORS,
    TENSORS,
    attention,
    feed_forward,
    gguf_attention,
    gguf_has_bias,
    gguf_model,
    gguf_rope,
    head_size,
    model,
    rope,
)
from hearth.converter.families.fused import fused_gate_up, reordered
from hearth.converter.families.layers import with_defaults
from hearth.converter.families.settings import Settings
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec

_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-7,
    "partial_rotary_factor": 0.5,
}


def _config(config: Settings, name: str, output_norms: bool) -> ModelSpec:
    config = with_defaults(config, _DEFAULTS)
    bias = config.boolean("attention_bias", True)
    block = BlockSpec(attention(config, bias=bias), feed_forward(config), output_norms=output_norms)
    ropes = [rope(config, head_size(config))]
    return model(config, name, "glm4" if output_norms else "glm", [block], ropes)


def _gguf(metadata: Settings, name: str, facts: GgufFacts, output_norms: bool) -> ModelSpec:
    bias = gguf_has_bias(facts)
    mixer = gguf_attention(metadata, bias=bias)
    inner = FeedForwardSpec(metadata.integer("feed_forward_length"))
    ropes = [gguf_rope(metadata, mixer.key_size, facts)]
    architecture = "glm4" if output_norms else "glm"
    block = BlockSpec(mixer, inner, output_norms=output_norms)
    return gguf_model(metadata, name, architecture, facts, [block], ropes)


def _of(read: Any, output_norms: bool) -> Any:
    return lambda *values: read(*values, output_norms)


_PAIRED = ("wq", "wk", "bq", "bk")


def _paired(names: Names) -> Names:
    """Queries and keys, whose rotary pairs lie side by side."""
    paired: dict[str, Recipe] = {part: reordered(names[part], rotary_pairs) for part in _PAIRED}
    return {**names, **paired}


def _sections(metadata: Settings) -> bool:
    """True for the text part of GLM-4V, whose queries and keys llama.cpp's converter reorders."""
    key = "rope.dimension_sections"
    sections = metadata.get(key, [])
    if not isinstance(sections, list):
        raise ModelError(f"{metadata.name(key)} is {shown(sections)}; a list is needed")
    numbers = metadata.integers(key, len(sections)) if sections else ()
    return len(numbers) > 1 and numbers[0] > 0 and numbers[1] > 0


_LAYER, _BLOCK = "model.layers.{layer}.", "blk.{layer}."
_STORED = _paired(
    {
        **TENSORS,
        **fused_gate_up(_LAYER + "mlp.gate_up_proj"),
        "attn_out_norm": _LAYER + "post_self_attn_layernorm.weight",
        "ffn_out_norm": _LAYER + "post_mlp_layernorm.weight",
    }
)
_GGUF_HALVES: Names = {**GGUF_TENSORS, **fused_gate_up(_BLOCK + "ffn_up")}
_GGUF = _paired(_GGUF_HALVES)

FAMILIES = (
    Family(
        name="GLM-4-9B",
        model_types=("glm",),
        classes=("GlmForCausalLM",),
        reads=("partial_rotary_factor",),
        config=_of(_config, False),
        tensors=_STORED,
        architectures=("chatglm",),
        gguf=_of(_gguf, False),
        gguf_tensors=_GGUF,
    ),
    Family(
        name="GLM-4",
        model_types=("glm4",),
        classes=("Glm4ForCausalLM",),
        reads=("partial_rotary_factor",),
        config=_of(_config, True),
        tensors=_STORED,
        architectures=("glm4",),
        gguf=_of(_gguf, True),
        gguf_tensors=_GGUF,
        gguf_layout=lambda metadata: _GGUF_HALVES if _sections(metadata) else {},
    ),
)
