"""Gemma 4, and the text part of those that also read images and sound.

12B and 31B are dense. 26B-A4B has experts beside the feed-forward. In E2B and E4B each layer has
inputs of its own, and the last layers read the keys and values of earlier ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hearth.converter.blocks import (
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerInputsSpec,
    RopeSpec,
)
from hearth.converter.errors import ModelError
from hearth.converter.families.base import Family, Files, GgufFacts, Names, Recipe, find
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
    layer_count,
    model,
)
from hearth.converter.families.fused import fused_experts, where
from hearth.converter.families.layers import (
    FULL,
    IMAGE_PARTS,
    WINDOW,
    every,
    gguf_windowed_layers,
    needed_window,
    windowed_layers,
    with_defaults,
)
from hearth.converter.families.rope import make_rope
from hearth.converter.families.settings import Settings
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec, check_size
from hearth.converter.stored import Computed, Stored, Zeros
from hearth.converter.tensors import TensorSpec

_PERIOD = 6
_ACTIVATION = "gelu_pytorch_tanh"
# Settings that transformers fills in where a config.json leaves them out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144,
}
# Of the 12B model, which has neither experts nor inputs of layers.
_UNIFIED: dict[str, Any] = {
    **_DEFAULTS,
    "max_position_embeddings": 262144,
    "sliding_window": 1024,
    "hidden_size_per_layer_input": 0,
}
_LAYER_INPUTS = "hidden_size_per_layer_input"
_ROPES = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    WINDOW: {"rope_type": "default", "rope_theta": 1e4},
}
# Divisors of frequencies from which on llama.cpp means no rotation.
_NO_ROTATION = 1e30


@dataclass(frozen=True)
class _Layers:
    """The layers, as both kinds of files describe them.

    windowed: of each layer. shared: the last ones, which read the keys and values of an earlier
    layer. full, window: the attention of the two kinds. sizes: of each layer's feed-forward.
    """

    windowed: Sequence[bool]
    shared: int
    full: AttentionSpec
    window: AttentionSpec
    sizes: Sequence[int]
    activation: str
    experts: ExpertsSpec | None
    scaled: bool = True

    def blocks(self) -> tuple[list[BlockSpec], list[int]]:
        """The kinds of blocks, and that of each layer. Raises ModelError."""
        layers = len(self.windowed)
        own = layers - self.shared
        if not 0 < own <= layers:
            raise ModelError(
                f"{self.shared} of {layers} layers read the keys and values of earlier ones; it "
                f"must be 0 to {layers - 1}"
            )
        blocks = []
        for layer, windowed in enumerate(self.windowed):
            mixer = self.window if windowed else self.full
            if layer >= own:
                mixer = replace(mixer, kv_layer=self._source(windowed, own), keys_as_values=False)
            blocks.append(
                BlockSpec(
                    mixer,
                    FeedForwardSpec(self.sizes[layer], self.activation),
                    self.experts,
                    output_norms=True,
                    separate_norms=self.experts is not None,
                    layer_scale=self.scaled,
                )
            )
        kinds = list(dict.fromkeys(blocks))
        return kinds, [kinds.index(block) for block in blocks]

    def _source(self, windowed: bool, own: int) -> int:
        """The last layer of the same kind that has keys and values of its own."""
        for layer in reversed(range(own)):
            if self.windowed[layer] == windowed:
                return layer
        raise ModelError(
            f"layers from {own} on read the keys and values of earlier ones, and none before has "
            f"{'a window' if windowed else 'no window'}"
        )


def _layer_inputs(size: int, hidden: int, function: str) -> LayerInputsSpec | None:
    if not size:
        return None
    return LayerInputsSpec(
        check_size("layer_input_size", size),
        function,
        embedding_scale=math.sqrt(size),
        projection_scale=hidden**-0.5,
        sum_scale=0.5**0.5,
    )


def _experts(count: int, used: int, size: int, function: str) -> ExpertsSpec:
    return ExpertsSpec(count, used, FeedForwardSpec(size, function), expert_scales=True)


def _config(config: Settings, name: str) -> ModelSpec:
    # A null has a meaning here: layers have no inputs of their own.
    none = config.values.get(_LAYER_INPUTS, 0) is None
    return _model(with_defaults(config, _DEFAULTS), name, none)


def _unified(config: Settings, name: str) -> ModelSpec:
    return _model(with_defaults(config, _UNIFIED), name, False)


def _model(config: Settings, name: str, no_inputs: bool) -> ModelSpec:
    config.refuse(
        "use_bidirectional_attention", "vision", why="Hearth runs models that make text from text"
    )
    config.refuse("rope_scaling", why="this family has a rope for each kind of layer")
    layers = layer_count(config)
    windowed = windowed_layers(config, layers, every(_PERIOD, layers))
    windowed[-1] = False  # transformers makes it so
    full, window = _attention(config, windowed)
    shared = config.integer("num_kv_shared_layers", 0)
    function = activation(config, "hidden_activation", _ACTIVATION)
    inner = feed_forward(config, activation=function).size
    wide = 2 * inner if config.boolean("use_double_wide_mlp", False) else inner
    sizes = [inner if layer < layers - shared else wide for layer in range(layers)]
    experts = None
    if config.boolean("enable_moe_block", False):
        experts = _experts(
            config.integer("num_experts"),
            config.integer("top_k_experts"),
            config.integer("moe_intermediate_size"),
            function,
        )
    kinds, order = _Layers(windowed, shared, full, window, sizes, function, experts).blocks()
    hidden = check_size("hidden_size", config.integer("hidden_size"))
    size = 0 if no_inputs else config.integer(_LAYER_INPUTS)
    if size and config.integer("vocab_size_per_layer_input") != config.integer("vocab_size"):
        raise ModelError(
            f"vocab_size_per_layer_input is {config.integer('vocab_size_per_layer_input')}, "
            f"vocab_size {config.integer('vocab_size')}; Hearth runs models where they are equal"
        )
    return model(
        config,
        name,
        "gemma4",
        kinds,
        _ropes(config, full.key_size, window.key_size),
        order,
        embedding_scale=math.sqrt(hidden),
        logit_softcap=config.number("final_logit_softcapping", 0.0),
        layer_inputs=_layer_inputs(size, hidden, function),
    )


def _attention(config: Settings, windowed: Sequence[bool]) -> tuple[AttentionSpec, AttentionSpec]:
    """The attention of layers without a window, and with one."""
    bias = config.boolean("attention_bias", False)
    common = {"scale": 1.0, "head_norm": True, "value_norm": True}
    window = attention(config, bias=bias, output_bias=bias, rope=1, **common)
    window = replace(window, window=needed_window(config, windowed))
    as_values = config.boolean("attention_k_eq_v", False)
    size, kv_heads = _full_sizes(config, windowed, as_values)
    own = Settings({**config.values, "head_dim": size, "num_key_value_heads": kv_heads})
    full = attention(own, bias=bias, output_bias=bias, keys_as_values=as_values, **common)
    return full, window


def _full_sizes(config: Settings, windowed: Sequence[bool], as_values: bool) -> tuple[int, int]:
    """Head size and KV heads of the layers without a window.

    In per_layer_config, by the layer's number: where they differ from the other layers', and so
    it may be empty. Without it for all of them at the top.
    """
    usual = config.integer("num_key_value_heads")
    by_layer = config.section("per_layer_config")
    if "per_layer_config" not in config:
        key = "num_global_key_value_heads"
        kv_heads = config.integer(key, usual) if as_values else usual
        return config.integer("global_head_dim"), kv_heads
    # transformers writes the numbers at one width: "05" beside "11".
    names = {
        int(key): key for key in by_layer.values if key.isascii() and key.isdigit() and len(key) < 9
    }
    if len(names) != len(by_layer.values) or any(layer >= len(windowed) for layer in names):
        raise ModelError(
            f"per_layer_config has {shown(sorted(by_layer.values))}; it needs the numbers of "
            f"layers, 0 to {len(windowed) - 1}, each once"
        )
    found = set()
    for layer, has_window in enumerate(windowed):
        own = by_layer.section(names.get(layer, str(layer)))
        unknown = sorted(own.values.keys() - {"head_dim", "num_key_value_heads"})
        if unknown:
            raise ModelError(f"{own.name(unknown[0])}: this family's layers have no such setting")
        if has_window and own.values:
            raise ModelError(f"{own.name('')[:-1]}: Hearth reads it for {FULL} layers alone")
        if not has_window:
            size = own.integer("head_dim", config.integer("head_dim"))
            found.add((size, own.integer("num_key_value_heads", usual)))
    if len(found) != 1:
        raise ModelError(
            f"per_layer_config: {FULL} layers have {len(found)} sizes of heads; it must be one"
        )
    return found.pop()


def _ropes(config: Settings, full_size: int, window_size: int) -> list[RopeSpec]:
    """The ropes of layers without a window, and with one."""
    parameters = config.section("rope_parameters")
    ropes = []
    for kind, size in ((FULL, full_size), (WINDOW, window_size)):
        own = parameters.section(kind)
        if not parameters.values:
            own = Settings(_ROPES[kind])
        elif not own.values:
            raise ModelError(f"rope_parameters has no {kind}; this family has a rope for each kind")
        theta = own.number("rope_theta")
        name = own.text("rope_type", "default")
        if name == "default":
            ropes.append(make_rope(size, theta))
        elif name == "proportional":
            part = own.number("partial_rotary_factor", 1.0)
            ropes.append(_proportional(own, size, theta, part))
        else:
            raise ModelError(
                f"{own.name('rope_type')} is {shown(name)}; in this family Hearth reads default "
                "and proportional"
            )
    return ropes


def _proportional(own: Settings, size: int, theta: float, part: float) -> RopeSpec:
    """A part of the pairs turns, at the frequencies of the whole head; the others stay."""
    factor = own.number("factor", 1.0)
    if not 0 <= part <= 1:
        raise ModelError(f"{own.name('partial_rotary_factor')} is {part:g}; it must be 0 to 1")
    if not 0 < factor <= 1e6:
        raise ModelError(f"{own.name('factor')} is {factor:g}; it must be above 0, at most 1e6")
    whole = make_rope(size, theta, factors=(factor,) * (size // 2))
    return _first_pairs(whole, int(part * size // 2))


def _first_pairs(rope: RopeSpec, count: int) -> RopeSpec:
    """The same, of which only the first pairs turn."""
    still = len(rope.frequencies) - count
    return replace(rope, frequencies=rope.frequencies[:count] + (0.0,) * still)


def _gguf(metadata: Settings, name: str, facts: GgufFacts) -> ModelSpec:
    layers = gguf_layer_count(metadata)
    windowed = gguf_windowed_layers(metadata, layers, _PERIOD)
    shared = metadata.integer("attention.shared_kv_layers", 0)
    kv_heads = metadata.integers("attention.head_count_kv", layers)
    common = {"scale": 1.0, "head_norm": True, "value_norm": True}

    def mixer(kind: bool, ending: str, more: dict[str, Any]) -> AttentionSpec:
        """Of the layers with or without a window; ending: of the keys of its sizes."""
        of_kind = [layer for layer in range(layers) if windowed[layer] == kind]
        counts = sorted({kv_heads[layer] for layer in of_kind}) or [kv_heads[0]]
        if len(counts) > 1:
            raise ModelError(
                f"{metadata.name('attention.head_count_kv')}: layers of one kind have "
                f"{' and '.join(map(str, counts))} KV heads"
            )
        first = next((layer for layer in of_kind if layer < layers - shared), 0)
        values = {
            metadata.name("attention.head_count_kv"): counts[0],
            metadata.name("attention.key_length"): metadata.integer(
                f"attention.key_length{ending}"
            ),
            metadata.name("attention.value_length"): metadata.integer(
                f"attention.value_length{ending}"
            ),
        }
        own = type(metadata)({**metadata.values, **values}, metadata.name(""))
        as_values = not facts.has(f"blk.{first}.attn_v.weight")
        return gguf_attention(own, keys_as_values=as_values, **common, **more)

    window_size = needed_window(metadata, windowed, "attention.sliding_window")
    full = mixer(False, "", {})
    window = mixer(True, "_swa", {"window": window_size, "rope": 1})
    inner = metadata.integers("feed_forward_length", layers)
    experts = None
    if facts.has("blk.0.ffn_gate_inp.weight"):
        experts = _experts(
            metadata.integer("expert_count"),
            metadata.integer("expert_used_count"),
            metadata.integer("expert_feed_forward_length"),
            "gelu_tanh",
        )
    scaled = facts.has("blk.0.layer_output_scale.weight")
    shape = _Layers(windowed, shared, full, window, inner, "gelu_tanh", experts, scaled)
    kinds, order = shape.blocks()
    hidden = check_size("hidden_size", metadata.integer("embedding_length"))
    return gguf_model(
        metadata,
        name,
        "gemma4",
        facts,
        kinds,
        _gguf_ropes(metadata, facts, full.key_size, window.key_size),
        order,
        embedding_scale=math.sqrt(hidden),
        logit_softcap=metadata.number("final_logit_softcapping", 0.0),
        layer_inputs=_layer_inputs(
            metadata.integer("embedding_length_per_layer_input", 0), hidden, "gelu_tanh"
        ),
    )


def _gguf_ropes(
    metadata: Settings, facts: GgufFacts, full_size: int, window_size: int
) -> list[RopeSpec]:
    """The ropes of layers without a window, whose frequencies the file may divide, and with one."""
    divisors = facts.rope_factors.get("rope_freqs", ())
    turning = next((n for n, value in enumerate(divisors) if value >= _NO_ROTATION), len(divisors))
    if any(value < _NO_ROTATION for value in divisors[turning:]):
        raise ModelError(
            "tensor rope_freqs.weight: a pair that turns comes after one that does not"
        )
    finite = {"rope_freqs": (*divisors[:turning], *(1.0,) * (len(divisors) - turning))}
    full = gguf_rope(metadata, full_size, replace(facts, rope_factors=finite if divisors else {}))
    if divisors:
        full = _first_pairs(full, turning)
    rotated = metadata.integer("rope.dimension_count_swa", window_size)
    return [full, make_rope(rotated, metadata.number("rope.freq_base_swa", 1e4))]


def _queries(name: str, beside: Sequence[str]) -> Recipe:
    """Queries; beside: names of tensors that a layer without keys of its own does not use."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        mixer = spec.kinds[spec.kind_of_layer[tensor.layer]].mixer
        if isinstance(mixer, AttentionSpec) and mixer.kv_layer is not None:
            unused = [each.replace("{layer}", str(tensor.layer)) for each in beside]
            files.ignore(each for each in unused if each in files)
        return find(files, spec, tensor, name)

    return recipe


def _router_norm(name: str) -> Recipe:
    """The weights of the router's norm: a vector over the root of the hidden size."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        factor = np.float32(spec.hidden_size**-0.5)
        stored = files.vector(name.replace("{layer}", str(tensor.layer)), tensor.shape[1])
        return Computed(stored, f"times {factor}", lambda values: values * factor)

    return recipe


def _ones(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
    return Computed(Zeros(tensor.shape[1]), "plus one", lambda values: values + np.float32(1))


_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_STORED: Names = {
    **TENSORS,
    "wq": _queries(
        _ATTENTION + "q_proj.weight",
        [_ATTENTION + each for each in ("k_proj.weight", "v_proj.weight", "k_norm.weight")],
    ),
    "attn_out_norm": _LAYER + "post_attention_layernorm.weight",
    "ffn_norm": _LAYER + "pre_feedforward_layernorm.weight",
    "ffn_out_norm": _LAYER + "post_feedforward_layernorm.weight",
    "router": _LAYER + "router.proj.weight",
    "router_norm": _router_norm(_LAYER + "router.scale"),
    "expert_scales": _LAYER + "router.per_expert_scale",
    "experts_norm": _LAYER + "pre_feedforward_layernorm_2.weight",
    "ffn_result_norm": _LAYER + "post_feedforward_layernorm_1.weight",
    "experts_result_norm": _LAYER + "post_feedforward_layernorm_2.weight",
    "experts_w1": fused_experts(_LAYER + "experts.gate_up_proj", 0),
    "experts_w3": fused_experts(_LAYER + "experts.gate_up_proj", 1),
    "experts_w2": _LAYER + "experts.down_proj",
    "layer_scale": _LAYER + "layer_scalar",
    "layer_embedding": "model.embed_tokens_per_layer.weight",
    "layer_projection": "model.per_layer_model_projection.weight",
    "layer_projection_norm": "model.per_layer_projection_norm.weight",
    "layer_gate": _LAYER + "per_layer_input_gate.weight",
    "layer_out": _LAYER + "per_layer_projection.weight",
    "layer_out_norm": _LAYER + "post_per_layer_input_norm.weight",
}
_BLOCK = "blk.{layer}."
_SCALES = _BLOCK + "ffn_down_exps.scale"
_GGUF_STORED: Names = {
    **GGUF_TENSORS,
    "wq": _queries(
        _BLOCK + "attn_q.weight",
        [_BLOCK + each for each in ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")],
    ),
    "router_norm": _router_norm(_BLOCK + "ffn_gate_inp.scale"),
    # Some files have them within the experts' weights.
    "expert_scales": where(_SCALES, _SCALES, _ones),
    "experts_norm": _BLOCK + "pre_ffw_norm_2.weight",
    "ffn_result_norm": _BLOCK + "post_ffw_norm_1.weight",
    "experts_result_norm": _BLOCK + "post_ffw_norm_2.weight",
    "layer_scale": _BLOCK + "layer_output_scale.weight",
    "layer_embedding": "per_layer_token_embd.weight",
    "layer_projection": "per_layer_model_proj.weight",
    "layer_projection_norm": "per_layer_proj_norm.weight",
    "layer_gate": _BLOCK + "inp_gate.weight",
    "layer_out": _BLOCK + "proj.weight",
    "layer_out_norm": _BLOCK + "post_norm.weight",
}
_OTHER_PARTS = (
    *IMAGE_PARTS,
    *(
        f"{prefix}{part}."
        for part in ("audio_tower", "embed_vision", "embed_audio")
        for prefix in ("model.", "")
    ),
)

FAMILIES = (
    Family(
        name="Gemma 4",
        model_types=("gemma4", "gemma4_text"),
        classes=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
        reads=(
            "layer_types",
            "sliding_window",
            "partial_rotary_factor",
            "use_bidirectional_attention",
            "per_layer_config",
        ),
        config=_config,
        tensors=_STORED,
        unused=_OTHER_PARTS,
        architectures=("gemma4",),
        gguf=_gguf,
        gguf_tensors=_GGUF_STORED,
    ),
    Family(
        name="Gemma 4 12B",
        model_types=("gemma4_unified", "gemma4_unified_text"),
        classes=("Gemma4UnifiedForCausalLM", "Gemma4UnifiedForConditionalGeneration"),
        reads=(
            "layer_types",
            "sliding_window",
            "partial_rotary_factor",
            "use_bidirectional_attention",
            "per_layer_config",
        ),
        config=_unified,
        tensors=_STORED,
        unused=_OTHER_PARTS,
    ),
)
