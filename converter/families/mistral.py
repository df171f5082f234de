"""Mistral, Ministral and Mixtral, and the text part of Mistral 3. As GGUF, older ones are Llama's.

Queries of Ministral 3 grow with their position.
"""

from dataclasses import replace
from typing import Any

from hearth.converter.blocks import (
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    FeedForwardSpec,
    TemperatureSpec,
)
from hearth.converter.families.base import Family, GgufFacts
from hearth.converter.families.common import (
    GGUF_TENSORS,
    TENSORS,
    activation,
    attention,
    feed_forward,
    head_size,
    layer_count,
    model,
    rope,
)
from hearth.converter.families.layers import (
    IMAGE_PARTS,
    needed_window,
    window_size,
    windowed_layers,
    with_defaults,
)
from hearth.converter.families.llama import PAIRED, gguf_llama
from hearth.converter.families.rope import yarn_magnitude
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec

# Of transformers, for files that say nothing; a null is for none.
_MISTRAL: dict[str, Any] = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "ministral3": {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
    },
    "mixtral": {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
    },
}


# Of Ministral 3, where a file has no settings of a rope.
_MINISTRAL3_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _config(config: Settings, name: str) -> ModelSpec:
    kind = config.text("model_type", "mistral")
    config = with_defaults(config, _DEFAULTS.get(kind, _MISTRAL))
    if kind == "ministral3" and not ("rope_parameters" in config or "rope_scaling" in config):
        config = with_defaults(config, {"rope_parameters": _MINISTRAL3_ROPE})
    layers = layer_count(config)
    # Ministral lists the kind of each layer.
    windowed = windowed_layers(config, layers, ["sliding_window" in config] * layers)
    inner = feed_forward(config)
    mixer = attention(config, temperature=_temperature(config))
    window = needed_window(config, windowed)
    blocks = [BlockSpec(replace(mixer, window=size), inner) for size in (0, window)]
    order = [int(each) for each in windowed]
    return model(config, name, "mistral", blocks, [rope(config, head_size(config))], order)


def _temperature(config: Settings) -> TemperatureSpec | None:
    """The growth of queries, which Ministral 3 has among the settings of its rope."""
    scaling = config.section("rope_scaling")
    used = scaling if scaling.values else config.section("rope_parameters")
    if "llama_4_scaling_beta" not in used:
        return None
    original = used.integer("original_max_position_embeddings")
    return TemperatureSpec(used.number("llama_4_scaling_beta"), original)


def _gguf(metadata: Settings, name: str, facts: GgufFacts) -> ModelSpec:
    spec = gguf_llama(metadata, name, facts, "mistral3")
    slope = metadata.number("attention.temperature_scale", 0.0)
    temperature = None
    if slope:
        original = metadata.integer(
            "rope.scaling.original_context_length", metadata.integer("context_length", 2048)
        )
        temperature = TemperatureSpec(slope, original)
    kinds = []
    for block in spec.kinds:
        assert isinstance(block.mixer, AttentionSpec)
        kinds.append(replace(block, mixer=replace(block.mixer, temperature=temperature)))
    factor = metadata.number("rope.scaling.factor", 1.0)
    # YaRN's factor of cos and sin is divided by the one that this multiplier makes.
    less = metadata.number("rope.scaling.yarn_log_multiplier", 0.0)
    ropes = [
        replace(each, magnitude=each.magnitude / yarn_magnitude(factor, less)) if less else each
        for each in spec.ropes
    ]
    return replace(spec, kinds=tuple(kinds), ropes=tuple(ropes))


def _mixtral(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _DEFAULTS["mixtral"])
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
        model_types=("mistral", "ministral", "ministral3", "mistral3"),
        classes=(
            "MistralForCausalLM",
            "MinistralForCausalLM",
            "Ministral3ForCausalLM",
            "Mistral3ForConditionalGeneration",
        ),
        reads=("layer_types", "sliding_window"),
        config=_config,
        tensors=TENSORS,
        unused=IMAGE_PARTS,
        architectures=("mistral3",),
        gguf=_gguf,
        gguf_tensors={**GGUF_TENSORS, **PAIRED},
    ),
    Family(
        name="Mixtral",
        model_types=("mixtral",),
        aliases=(("num_experts", "num_local_experts"),),
        classes=("MixtralForCausalLM",),
        reads=("sliding_window",),
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
