"""gpt-oss: sinks, a window in every second layer, clamped experts, weights in MXFP4."""

from dataclasses import replace
from typing import Any

import numpy as np

from hearth.converter.blocks import (
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    FeedForwardSpec,
    GateClampSpec,
)
from hearth.converter.errors import ModelError
from hearth.converter.families.base import Family, Files, GgufFacts, Names, Recipe
from hearth.converter.families.common import (
    GGUF_TENSORS,
    TENSORS,
    attention,
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
    gguf_windowed_layers,
    needed_window,
    windowed_layers,
    with_defaults,
)
from hearth.converter.families.mxfp4 import Mxfp4Blocks
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec
from hearth.converter.stored import PickedRows, Stacked, Stored, Transposed
from hearth.converter.tensors import TensorSpec

_ALPHA, _LIMIT = 1.702, 7.0
_THETA = 150000.0
_PERIOD = 2
_DEFAULTS: dict[str, Any] = {
    "head_dim": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "sliding_window": 128,
}
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _config(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _DEFAULTS)
    if "rope_parameters" not in config and "rope_scaling" not in config:
        config = with_defaults(config, {"rope_scaling": _ROPE})
    config.refuse("hidden_act", "silu", why="gpt-oss has silu")
    layers = layer_count(config)
    windowed = windowed_layers(config, layers, every(_PERIOD, layers))
    bias = config.boolean("attention_bias", True)
    mixer = attention(config, sinks=True, bias=bias, output_bias=bias)
    experts = _experts(
        config.integer("num_local_experts", config.integer("num_experts", 128)),
        config.integer("num_experts_per_tok", config.integer("experts_per_token", 4)),
        config.integer("intermediate_size"),
        GateClampSpec(
            config.number("swiglu_limit", _LIMIT), config.number("swiglu_alpha", _ALPHA), 1.0
        ),
    )
    kinds = _kinds(mixer, experts, needed_window(config, windowed))
    ropes = [rope(config, head_size(config), _THETA)]
    return model(config, name, "gpt-oss", kinds, ropes, [int(each) for each in windowed])


def _experts(count: int, used: int, size: int, clamp: GateClampSpec) -> ExpertsSpec:
    expert = FeedForwardSpec(size, bias=True, output_bias=True, clamp=clamp)
    return ExpertsSpec(count, used, expert, router_bias=True)


def _kinds(mixer: AttentionSpec, experts: ExpertsSpec, window: int) -> list[BlockSpec]:
    return [BlockSpec(replace(mixer, window=size), None, experts) for size in (0, window)]


def _gguf(metadata: Settings, name: str, facts: GgufFacts) -> ModelSpec:
    layers = gguf_layer_count(metadata)
    windowed = gguf_windowed_layers(metadata, layers, _PERIOD)
    bias = gguf_has_bias(facts)
    mixer = gguf_attention(metadata, sinks=True, bias=bias, output_bias=bias)
    own = "expert_feed_forward_length"
    experts = _experts(
        metadata.integer("expert_count"),
        metadata.integer("expert_used_count"),
        metadata.integer(own if own in metadata else "feed_forward_length"),
        GateClampSpec(_LIMIT, _ALPHA, 1.0),
    )
    window = needed_window(metadata, windowed, "attention.sliding_window")
    # llama.cpp ends YaRN's ramp at whole pairs; the model was not trained so.
    ropes = [gguf_rope(metadata, mixer.key_size, facts, _THETA, truncate=False)]
    order = [int(each) for each in windowed]
    kinds = _kinds(mixer, experts, window)
    return gguf_model(metadata, name, "gpt-oss", facts, kinds, ropes, order)


_EXPERTS = "model.layers.{layer}.mlp.experts."


def _fused(name: str, step: int, first: int) -> Recipe:
    """Experts' matrix of every `step`-th row from `first`.

    Either in MXFP4, its blocks and scales apart, or in floats and transposed.
    """

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        stored = name.replace("{layer}", str(tensor.layer))
        rows, columns = tensor.shape
        if f"{stored}_blocks" in files:
            if columns % 32:
                raise ModelError(f"tensor {stored}_blocks: {columns} columns are not whole blocks")
            blocks = files.bytes_of(f"{stored}_blocks", step * rows, columns // 2)
            scales = files.bytes_of(f"{stored}_scales", step * rows, columns // 32)
            whole: Stored = Mxfp4Blocks(blocks, scales)
            return whole if step == 1 else PickedRows(whole, np.arange(rows) * step + first)
        count, each = tensor.parts, rows // tensor.parts
        fused = files.matrix(stored, count * columns, step * each)
        parts: list[Stored] = []
        for expert in range(count):
            one = PickedRows(fused, np.arange(expert * columns, (expert + 1) * columns))
            turned = Transposed(one)
            picked = np.arange(each) * step + first
            parts.append(turned if step == 1 else PickedRows(turned, picked))
        return Stacked(parts)

    return recipe


def _fused_bias(name: str, first: int) -> Recipe:
    """Every second element of the experts' biases of gate and up."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        size = tensor.shape[1]
        stored = files.vector(name.replace("{layer}", str(tensor.layer)), 2 * size)
        return PickedRows(stored, np.arange(size) * 2 + first)

    return recipe


_STORED: Names = {
    **TENSORS,
    "router": "model.layers.{layer}.mlp.router.weight",
    "router_bias": "model.layers.{layer}.mlp.router.bias",
    "experts_w1": _fused(_EXPERTS + "gate_up_proj", 2, 0),
    "experts_w3": _fused(_EXPERTS + "gate_up_proj", 2, 1),
    "experts_w2": _fused(_EXPERTS + "down_proj", 1, 0),
    "experts_b1": _fused_bias(_EXPERTS + "gate_up_proj_bias", 0),
    "experts_b3": _fused_bias(_EXPERTS + "gate_up_proj_bias", 1),
    "experts_b2": _EXPERTS + "down_proj_bias",
}

FAMILY = Family(
    name="gpt-oss",
    model_types=("gpt_oss",),
    classes=("GptOssForCausalLM",),
    reads=("layer_types", "sliding_window"),
    config=_config,
    tensors=_STORED,
    architectures=("gpt-oss",),
    gguf=_gguf,
    gguf_tensors={
        **GGUF_TENSORS,
        "ffn_norm": "blk.{layer}.post_attention_norm.weight",
    },
)
