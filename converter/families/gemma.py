"""Gemma 2 and Gemma 3, and the text part of Gemma 3 models that also read images."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

from hearth.converter.blocks import AttentionSpec, BlockSpec, FeedForwardSpec, RopeSpec
from hearth.converter.errors import ModelError
from hearth.converter.families.base import Family, GgufFacts, Names, one_more
from hearth.converter.families.common import (
    GGUF_TENSORS,
    TENSORS,
    activation,
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
    IMAGE_PARTS,
    every,
    gguf_windowed_layers,
    needed_window,
    ropes_by_kind,
    windowed_layers,
    with_defaults,
)
from hearth.converter.families.rope import make_rope
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec, check_size

_GEMMA2_WINDOW = 4096
# Settings that transformers fills in where a config.json leaves them out.
_GEMMA2 = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": _GEMMA2_WINDOW,
}
_GEMMA3 = _GEMMA2 | {"vocab_size": 262208, "max_position_embeddings": 131072}
_SOFTCAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}

# Layers in turn: one without a window after so many with one.
_PERIOD2, _PERIOD3 = 2, 6
# Layers of the 27B models, whose scale llama.cpp takes from the hidden size.
_LARGEST = {"gemma2": 46, "gemma3": 62}


def _softcap(config: Settings, key: str, usual: float) -> float:
    """A cap; null is for none where the key is in the file."""
    return 0.0 if key in config.values and key not in config else config.number(key, usual)


def _mixer(config: Settings, **more: Any) -> AttentionSpec:
    scalar = config.number("query_pre_attn_scalar")
    if not 0 < scalar <= 1e9:
        raise ModelError(f"query_pre_attn_scalar is {scalar}; it must be above 0")
    bias = config.boolean("attention_bias", False)
    return attention(config, scale=scalar**-0.5, bias=bias, output_bias=bias, **more)


def _gemma2(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _GEMMA2)
    attention_cap, logit_cap = (_softcap(config, key, usual) for key, usual in _SOFTCAPS.items())
    layers = layer_count(config)
    windowed = windowed_layers(config, layers, every(_PERIOD2, layers))
    mixer = _mixer(config, softcap=attention_cap)
    ropes = [rope(config, head_size(config))]
    return _model(config, name, "gemma2", mixer, windowed, ropes, logit_cap)


def _gemma3(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _GEMMA3)
    config.refuse("attn_logit_softcapping", why="Gemma 3 has no cap of scores; set it to null")
    layers = layer_count(config)
    period = config.integer("sliding_window_pattern", _PERIOD3)
    windowed = windowed_layers(config, layers, every(period, layers))
    logit_cap = config.number("final_logit_softcapping", 0.0)
    mixer = _mixer(config, head_norm=True)
    local = config.number("rope_local_base_freq", 1e4)
    ropes = ropes_by_kind(config, head_size(config), 1e6, local)
    return _model(config, name, "gemma3", mixer, windowed, ropes, logit_cap)


def _model(
    config: Settings,
    name: str,
    architecture: str,
    mixer: AttentionSpec,
    windowed: list[bool],
    ropes: list[RopeSpec],
    logit_cap: float,
) -> ModelSpec:
    hidden = check_size("hidden_size", config.integer("hidden_size"))
    inner = feed_forward(
        config, activation=activation(config, "hidden_activation", "gelu_pytorch_tanh")
    )
    return model(
        config,
        name,
        architecture,
        _kinds(mixer, inner, needed_window(config, windowed), ropes),
        ropes,
        [int(each) for each in windowed],
        embedding_scale=math.sqrt(hidden),
        logit_softcap=logit_cap,
    )


def _kinds(
    mixer: AttentionSpec, inner: FeedForwardSpec, window: int, ropes: list[RopeSpec]
) -> list[BlockSpec]:
    """Layers without a window, and with one, which has the last rope."""
    windowed = replace(mixer, window=window, rope=len(ropes) - 1)
    return [BlockSpec(each, inner, output_norms=True) for each in (mixer, windowed)]


def _gguf(metadata: Settings, name: str, facts: GgufFacts, architecture: str) -> ModelSpec:
    layers = gguf_layer_count(metadata)
    second = architecture == "gemma2"
    windowed = gguf_windowed_layers(metadata, layers, _PERIOD2 if second else _PERIOD3)
    key = "attention.sliding_window"
    if not second and not metadata.integer(key, 0):  # a Gemma 3 without windows
        windowed = [False] * layers
    mixer = gguf_attention(metadata, head_norm=not second)
    size = mixer.key_size
    hidden = check_size("hidden_size", metadata.integer("embedding_length"))
    if layers == _LARGEST[architecture]:
        size = max(hidden // mixer.heads, 1)
    scale = metadata.number("attention.scale", size**-0.5)
    cap = metadata.number("attn_logit_softcapping", 50.0) if second else 0.0
    ropes = [gguf_rope(metadata, mixer.key_size, facts, 10000.0 if second else 1e6)]
    if not second:
        local = metadata.number("rope.freq_base_swa", 10000.0)
        ropes.append(make_rope(metadata.integer("rope.dimension_count", mixer.key_size), local))
    inner = FeedForwardSpec(metadata.integer("feed_forward_length"), "gelu_tanh")
    mixer = replace(mixer, scale=scale, softcap=cap)
    window = needed_window(metadata, windowed, key, _GEMMA2_WINDOW if second else 0)
    return gguf_model(
        metadata,
        name,
        architecture,
        facts,
        _kinds(mixer, inner, window, ropes),
        ropes,
        [int(each) for each in windowed],
        embedding_scale=math.sqrt(hidden),
        logit_softcap=metadata.number("final_logit_softcapping", 30.0 if second else 0.0),
    )


_LAYER = "model.layers.{layer}."
_STORED: Names = {
    **TENSORS,
    "norm": one_more("model.norm.weight"),
    "attn_norm": one_more(_LAYER + "input_layernorm.weight"),
    "attn_out_norm": one_more(_LAYER + "post_attention_layernorm.weight"),
    "ffn_norm": one_more(_LAYER + "pre_feedforward_layernorm.weight"),
    "ffn_out_norm": one_more(_LAYER + "post_feedforward_layernorm.weight"),
    "q_norm": one_more(_LAYER + "self_attn.q_norm.weight"),
    "k_norm": one_more(_LAYER + "self_attn.k_norm.weight"),
}

FAMILIES = (
    Family(
        name="Gemma 2",
        model_types=("gemma2",),
        classes=("Gemma2ForCausalLM",),
        reads=("layer_types", "sliding_window"),
        config=_gemma2,
        tensors=_STORED,
        architectures=("gemma2",),
        gguf=partial(_gguf, architecture="gemma2"),
        gguf_tensors=GGUF_TENSORS,
    ),
    Family(
        name="Gemma 3",
        model_types=("gemma3", "gemma3_text"),
        classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        reads=("layer_types", "sliding_window"),
        config=_gemma3,
        tensors=_STORED,
        unused=IMAGE_PARTS,
        architectures=("gemma3",),
        gguf=partial(_gguf, architecture="gemma3"),
        gguf_tensors=GGUF_TENSORS,
    ),
)
