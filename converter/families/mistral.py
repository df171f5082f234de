"""Mistral, Ministral and Mixtral. As GGUF, older ones are Llama's."""

from hearth.converter.blocks import BlockSpec, ExpertsSpec, FeedForwardSpec
from hearth.converter.families.base import Family
from hearth.converter.families.common import (
    TENSORS,
    activation,
    attention,
    feed_forward,
    head_size,
    layer_count,
    model,
    rope,
)
from hearth.converter.families.layers import needed_window, window_size, windowed_layers
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec


def _config(config: Settings, name: str) -> ModelSpec:
    layers = layer_count(config)
    # Ministral lists the kind of each layer.
    windowed = windowed_layers(config, layers, ["sliding_window" in config] * layers)
    inner = feed_forward(config)
    blocks = [
        BlockSpec(attention(config), inner),
        BlockSpec(attention(config, window=needed_window(config, windowed)), inner),
    ]
    order = [int(each) for each in windowed]
    return model(config, name, "mistral", blocks, [rope(config, head_size(config))], order)


def _mixtral(config: Settings, name: str) -> ModelSpec:
    mixer = attention(config, window=window_size(config))
    experts = ExpertsSpec(
        config.integer("num_local_experts", 8),
        config.integer("num_experts_per_tok", 2),
        FeedForwardSpec(config.integer("intermediate_size"), activation(config)),
    )
    block = BlockSpec(mixer, None, experts)
    return model(config, name, "mixtral", [block], [rope(config, head_size(config), 1e6)])


_EXPERT = "model.layers.{layer}.block_sparse_moe.experts.{expert}."

FAMILIES = (
    Family(
        name="Mistral",
        model_types=("mistral", "ministral"),
        classes=("MistralForCausalLM", "MinistralForCausalLM"),
        config=_config,
        tensors=TENSORS,
    ),
    Family(
        name="Mixtral",
        model_types=("mixtral",),
        classes=("MixtralForCausalLM",),
        config=_mixtral,
        tensors={
            **TENSORS,
            "router": "model.layers.{layer}.block_sparse_moe.gate.weight",
            "experts_w1": _EXPERT + "w1.weight",
            "experts_w2": _EXPERT + "w2.weight",
            "experts_w3": _EXPERT + "w3.weight",
        },
    ),
)
