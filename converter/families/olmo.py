"""OLMo 2 and OLMo 3: norms of what layers add, and of all queries and all keys of a token."""

from dataclasses import replace
from typing import Any

from hearth.converter.blocks import BlockSpec, FeedForwardSpec
from hearth.converter.families.base import Family, GgufFacts, Names
from hearth.converter.families.common import (
    GGUF_TENSORS,
    TENSORS,
    attention,
    feed_forward,
    gguf_attention,
    gguf_layer_count,
    gguf_model,
    gguf_rope,
    head_size,
    layer_count,
    model,
    rope,
)
from hearth.converter.families.layers import (
    every,
    gguf_windowed_layers,
    needed_window,
    ropes_by_kind,
    windowed_layers,
    with_defaults,
)
from hearth.converter.families.rope import make_rope
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec

_DEFAULTS: dict[str, Any] = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
_PERIOD = 4


def _blocks(mixer: Any, inner: FeedForwardSpec, window: int, rope_index: int) -> list[BlockSpec]:
    windowed = replace(mixer, window=window, rope=rope_index)
    return [
        BlockSpec(each, inner, input_norms=False, output_norms=True) for each in (mixer, windowed)
    ]


def _olmo2(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _DEFAULTS)
    bias = config.boolean("attention_bias", False)
    mixer = attention(config, bias=bias, output_bias=bias, row_norm=True)
    blocks = _blocks(mixer, feed_forward(config), 0, 0)[:1]
    return model(config, name, "olmo2", blocks, [rope(config, head_size(config))])


def _olmo3(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _DEFAULTS | {"sliding_window": 4096})
    layers = layer_count(config)
    windowed = windowed_layers(config, layers, every(_PERIOD, layers))
    bias = config.boolean("attention_bias", False)
    mixer = attention(config, bias=bias, output_bias=bias, row_norm=True)
    blocks = _blocks(mixer, feed_forward(config), needed_window(config, windowed), 1)
    ropes = ropes_by_kind(config, head_size(config), 5e5, config.number("rope_theta", 5e5))
    return model(config, name, "olmo3", blocks, ropes, [int(each) for each in windowed])


def _gguf(metadata: Settings, name: str, facts: GgufFacts) -> ModelSpec:
    layers = gguf_layer_count(metadata)
    key = "attention.sliding_window"
    windowed = [False] * layers
    if metadata.integer(key, 0):  # 0 is for none
        windowed = gguf_windowed_layers(metadata, layers, _PERIOD)
    mixer = gguf_attention(metadata, row_norm=True)
    inner = FeedForwardSpec(metadata.integer("feed_forward_length"))
    size = metadata.integer("rope.dimension_count", mixer.key_size)
    # Scaling is of the layers without a window alone.
    ropes = [
        gguf_rope(metadata, mixer.key_size, facts),
        make_rope(size, metadata.number("rope.freq_base", 1e4)),
    ]
    blocks = _blocks(mixer, inner, needed_window(metadata, windowed, key), 1)
    order = [int(each) for each in windowed]
    return gguf_model(metadata, name, "olmo2", facts, blocks, ropes, order)


_LAYER = "model.layers.{layer}."
_STORED: Names = {
    **TENSORS,
    "attn_out_norm": _LAYER + "post_attention_layernorm.weight",
    "ffn_out_norm": _LAYER + "post_feedforward_layernorm.weight",
}

FAMILIES = (
    Family(
        name="OLMo 2",
        model_types=("olmo2",),
        classes=("Olmo2ForCausalLM",),
        config=_olmo2,
        tensors=_STORED,
        architectures=("olmo2",),
        gguf=_gguf,
        gguf_tensors=GGUF_TENSORS,
    ),
    Family(
        name="OLMo 3",
        model_types=("olmo3",),
        classes=("Olmo3ForCausalLM",),
        reads=("layer_types", "sliding_window"),
        config=_olmo3,
        tensors=_STORED,
    ),
)
