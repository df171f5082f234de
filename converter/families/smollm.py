"""SmolLM3: Llama with layers that have no rotary positions. (SmolLM 1 and 2 are Llama's.)"""

from dataclasses import replace
from typing import Any

from hearth.converter.blocks import BlockSpec, FeedForwardSpec
from hearth.converter.errors import ModelError
from hearth.converter.families.base import Family, GgufFacts
from hearth.converter.families.common import (
    GGUF_TENSORS,
    TENSORS,
    attention,
    feed_forward,
    gguf_attention,
    gguf_has_bias,
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
    needed_window,
    windowed_layers,
    with_defaults,
)
from hearth.converter.families.llama import PAIRED
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec

_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
_THETA = 2e6
_PERIOD = 4


def _config(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _DEFAULTS)
    layers = layer_count(config)
    # 1 for each layer with rotary positions.
    usual = [int(each) for each in every(config.integer("no_rope_layer_interval", _PERIOD), layers)]
    rotated = config.integers("no_rope_layers", layers, usual)
    if not all(each in (0, 1) for each in rotated):
        raise ModelError(f"{config.name('no_rope_layers')} is {list(rotated)}; 0 and 1 are needed")
    used = config.boolean("use_sliding_window", False) and "sliding_window" in config
    windowed = windowed_layers(config, layers, [used and not each for each in rotated])
    window = needed_window(config, windowed) if used else 0
    bias, mlp_bias = config.boolean("attention_bias", False), config.boolean("mlp_bias", False)
    mixer = attention(config, bias=bias, output_bias=bias)
    inner = feed_forward(config, bias=mlp_bias, output_bias=mlp_bias)
    blocks = [
        BlockSpec(replace(mixer, window=size, rope=rope_index), inner)
        for size in (0, window)
        for rope_index in (None, 0)
    ]
    order = [
        2 * int(within and window > 0) + turned
        for within, turned in zip(windowed, rotated, strict=True)
    ]
    ropes = [rope(config, head_size(config), _THETA)]
    return model(config, name, "smollm3", blocks, ropes, order)


def _gguf(metadata: Settings, name: str, facts: GgufFacts) -> ModelSpec:
    mixer = gguf_attention(metadata, bias=gguf_has_bias(facts))
    inner = FeedForwardSpec(metadata.integer("feed_forward_length"))
    blocks = [BlockSpec(mixer, inner), BlockSpec(replace(mixer, rope=None), inner)]
    order = [int(not each) for each in every(_PERIOD, gguf_layer_count(metadata))]
    ropes = [gguf_rope(metadata, mixer.key_size, facts, _THETA)]
    return gguf_model(metadata, name, "smollm3", facts, blocks, ropes, order)


FAMILY = Family(
    name="SmolLM3",
    model_types=("smollm3",),
    classes=("SmolLM3ForCausalLM",),
    reads=("layer_types", "sliding_window"),
    config=_config,
    tensors=TENSORS,
    architectures=("smollm3",),
    gguf=_gguf,
    gguf_tensors={**GGUF_TENSORS, **PAIRED},
)
