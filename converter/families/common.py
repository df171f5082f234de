"""Settings and tensor names that many families share, as Hugging Face and llama.cpp write them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hearth.converter.blocks import (
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    FeedForwardSpec,
    RopeSpec,
    attention_scale,
)
from hearth.converter.errors import ModelError
from hearth.converter.families.base import GgufFacts, Names, Recipe
from hearth.converter.families.fused import fused_experts, fused_qkv, where
from hearth.converter.families.rope import (
    RopeScaling,
    longrope_magnitude,
    make_rope,
    yarn_magnitude,
)
from hearth.converter.families.settings import Settings
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec, check_size

_LAYER = "model.layers.{layer}."
# Names of Llama and of the many families that followed it.
TENSORS: Names = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "norm.bias": "model.norm.bias",
    "head": "lm_head.weight",
    "attn_norm": _LAYER + "input_layernorm.weight",
    "attn_norm.bias": _LAYER + "input_layernorm.bias",
    "wq": _LAYER + "self_attn.q_proj.weight",
    "wk": _LAYER + "self_attn.k_proj.weight",
    "wv": _LAYER + "self_attn.v_proj.weight",
    "wo": _LAYER + "self_attn.o_proj.weight",
    "bq": _LAYER + "self_attn.q_proj.bias",
    "bk": _LAYER + "self_attn.k_proj.bias",
    "bv": _LAYER + "self_attn.v_proj.bias",
    "bo": _LAYER + "self_attn.o_proj.bias",
    "q_norm": _LAYER + "self_attn.q_norm.weight",
    "k_norm": _LAYER + "self_attn.k_norm.weight",
    "sinks": _LAYER + "self_attn.sinks",
    "ffn_norm": _LAYER + "post_attention_layernorm.weight",
    "ffn_norm.bias": _LAYER + "post_attention_layernorm.bias",
    "w1": _LAYER + "mlp.gate_proj.weight",
    "w2": _LAYER + "mlp.down_proj.weight",
    "w3": _LAYER + "mlp.up_proj.weight",
    "b1": _LAYER + "mlp.gate_proj.bias",
    "b2": _LAYER + "mlp.down_proj.bias",
    "b3": _LAYER + "mlp.up_proj.bias",
    "router": _LAYER + "mlp.gate.weight",
    "experts_w1": _LAYER + "mlp.experts.{expert}.gate_proj.weight",
    "experts_w2": _LAYER + "mlp.experts.{expert}.down_proj.weight",
    "experts_w3": _LAYER + "mlp.experts.{expert}.up_proj.weight",
}

_BLOCK = "blk.{layer}."
_GATE_UP = _BLOCK + "ffn_gate_up_exps.weight"
_QKV = _BLOCK + "attn_qkv"


def _experts(name: str) -> Recipe:
    """Experts in one tensor, or each in its own as in files of 2023 (Mixtral)."""
    each, together = f"{_BLOCK}{name}.{{expert}}.weight", f"{_BLOCK}{name}_exps.weight"
    return where(f"{_BLOCK}{name}.0.weight", each, together)


GGUF_TENSORS: Names = {
    "embedding": "token_embd.weight",
    "positions": "position_embd.weight",
    "norm": "output_norm.weight",
    "norm.bias": "output_norm.bias",
    "head": "output.weight",
    "head_bias": "output.bias",
    "attn_norm": _BLOCK + "attn_norm.weight",
    "attn_norm.bias": _BLOCK + "attn_norm.bias",
    "attn_out_norm": _BLOCK + "post_attention_norm.weight",
    **{
        part: where(_QKV + ".weight", recipe, f"{_BLOCK}attn_{part[1]}.{ending}")
        for part, recipe in fused_qkv(_QKV).items()
        for ending in ("weight" if part[0] == "w" else "bias",)
    },
    "wo": _BLOCK + "attn_output.weight",
    "bo": _BLOCK + "attn_output.bias",
    "q_norm": _BLOCK + "attn_q_norm.weight",
    "k_norm": _BLOCK + "attn_k_norm.weight",
    "sinks": _BLOCK + "attn_sinks.weight",
    "ffn_norm": _BLOCK + "ffn_norm.weight",
    "ffn_norm.bias": _BLOCK + "ffn_norm.bias",
    "ffn_out_norm": _BLOCK + "post_ffw_norm.weight",
    "w1": _BLOCK + "ffn_gate.weight",
    "w2": _BLOCK + "ffn_down.weight",
    "w3": _BLOCK + "ffn_up.weight",
    "b1": _BLOCK + "ffn_gate.bias",
    "b2": _BLOCK + "ffn_down.bias",
    "b3": _BLOCK + "ffn_up.bias",
    "router": _BLOCK + "ffn_gate_inp.weight",
    "router_bias": _BLOCK + "ffn_gate_inp.bias",
    "choice_bias": _BLOCK + "exp_probs_b.bias",
    "experts_w1": fused_experts(_GATE_UP, 0, _experts("ffn_gate")),
    "experts_w2": _experts("ffn_down"),
    "experts_w3": fused_experts(_GATE_UP, 1, _experts("ffn_up")),
    "experts_b1": _BLOCK + "ffn_gate_exps.bias",
    "experts_b2": _BLOCK + "ffn_down_exps.bias",
    "experts_b3": _BLOCK + "ffn_up_exps.bias",
}
# Of shared experts, a feed-forward beside the chosen ones.
GGUF_SHARED_EXPERT: Names = {
    "w1": _BLOCK + "ffn_gate_shexp.weight",
    "w2": _BLOCK + "ffn_down_shexp.weight",
    "w3": _BLOCK + "ffn_up_shexp.weight",
    "ffn_gate": _BLOCK + "ffn_gate_inp_shexp.weight",
}

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu_squared",
}
_ORIGINAL = "original_max_position_embeddings"


def activation(config: Settings, key: str = "hidden_act", default: str = "silu") -> str:
    """An activation by its name in transformers."""
    name = config.text(key, default)
    if name not in _ACTIVATIONS:
        raise ModelError(
            f"{config.name(key)} is {shown(name)}; Hearth runs {', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[name]


def head_size(config: Settings) -> int:
    """The size of a head: head_dim, else an equal part of the hidden size."""
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    if "head_dim" in config:
        return check_size("head_size", config.integer("head_dim"))
    if heads < 1 or hidden % heads:
        raise ModelError(
            f"{config.name('hidden_size')} {hidden} is not a multiple of num_attention_heads "
            f"{heads}, and head_dim is absent"
        )
    return check_size("head_size", hidden // heads)


def attention(config: Settings, **more: Any) -> AttentionSpec:
    """The attention of a config.json, with the first rope. more: other fields than usual."""
    size = head_size(config)
    heads = config.integer("num_attention_heads")
    fields: dict[str, Any] = {
        "heads": heads,
        "kv_heads": check_groups(heads, config.integer("num_key_value_heads", heads)),
        "key_size": size,
        "value_size": size,
        "scale": attention_scale(size),
        "rope": 0,
    }
    return AttentionSpec(**(fields | more))


def check_groups(heads: int, kv_heads: int) -> int:
    """Return `kv_heads`. Raises ModelError where query heads do not divide over them."""
    if kv_heads < 1 or heads % kv_heads:
        raise ModelError(f"{heads} heads cannot be shared equally by {kv_heads} KV heads")
    return kv_heads


def feed_forward(config: Settings, size: int | None = None, **more: Any) -> FeedForwardSpec:
    """The gated feed-forward of a config.json."""
    inner = config.integer("intermediate_size") if size is None else size
    fields: dict[str, Any] = {"size": inner, "activation": activation(config)}
    return FeedForwardSpec(**(fields | more))


def model(
    config: Settings,
    name: str,
    architecture: str,
    kinds: Sequence[BlockSpec],
    ropes: Sequence[RopeSpec],
    kind_of_layer: Sequence[int] | None = None,
    **more: Any,
) -> ModelSpec:
    """A model's spec from a config.json; without kind_of_layer all layers are of the first kind."""
    layers = layer_count(config)
    fields: dict[str, Any] = {
        "name": name,
        "architecture": architecture,
        "hidden_size": config.integer("hidden_size"),
        "vocab_size": config.integer("vocab_size"),
        "context_size": config.integer("max_position_embeddings", 2048),
        "kinds": tuple(kinds),
        "kind_of_layer": (0,) * layers if kind_of_layer is None else tuple(kind_of_layer),
        "ropes": tuple(ropes),
        "norm_epsilon": config.number("rms_norm_eps", 1e-6),
        "tied": config.boolean("tie_word_embeddings", False),
    }
    return ModelSpec(**(fields | more))


def layer_count(config: Settings, key: str = "num_hidden_layers") -> int:
    """The number of layers, bounded before lists of that length are made."""
    layers = config.integer(key)
    if not 1 <= layers <= 1024:
        raise ModelError(f"layers is {shown(layers)}; it must be a whole number, 1 to 1024")
    return layers


def gguf_layer_count(metadata: Settings) -> int:
    """The number of layers, less those behind the model's that guess further tokens."""
    blocks = layer_count(metadata, "block_count")
    further = metadata.integer("nextn_predict_layers", 0)
    if not 0 <= further < blocks:
        raise ModelError(
            f"{metadata.name('nextn_predict_layers')} is {further} of {blocks} layers; it must be "
            f"0 to {blocks - 1}"
        )
    return blocks - further


def rope(config: Settings, size: int, theta: float = 10000.0, partial: float = 1.0) -> RopeSpec:
    """The one rope of a config.json, of heads of `size`.

    theta, partial: the family's usual base, and part of a head that is rotated.

    As transformers 4 and 5 both read it: rope_scaling, where it says anything, takes the place of
    rope_parameters.
    """
    parameters, scaling = config.section("rope_parameters"), config.section("rope_scaling")
    used = scaling if scaling.values else parameters
    for key, value in used.values.items():
        if isinstance(value, dict):
            raise ModelError(
                f"{used.name(key)} has settings of its own; this family has the same in all layers"
            )
    base = (used if "rope_theta" in used else config).number("rope_theta", theta)
    dropped = parameters.number("rope_theta", base)
    if dropped != base:
        raise ModelError(
            f"rope_theta is {dropped:g} in rope_parameters, which rope_scaling replaces, and so "
            f"{base:g} would count; put the right one into rope_scaling"
        )
    # At the top of the file it counts for transformers 5, in the object for transformers 4.
    original = config.get(_ORIGINAL)
    if original is not None and used.get(_ORIGINAL, original) != original:
        raise ModelError(
            f"{_ORIGINAL} is {shown(original)}, but {shown(used.get(_ORIGINAL))} in "
            f"{used.name('')[:-1]}; make them equal"
        )
    partial = config.number("partial_rotary_factor", partial)
    partial = used.number("partial_rotary_factor", partial)
    if not 0 < partial <= 1:
        raise ModelError(
            f"partial_rotary_factor is {partial:g}; it is a part of a head, above 0 and at most 1"
        )
    return make_rope(int(size * partial), base, rope_scaling(used, config))


def rope_scaling(used: Settings, config: Settings) -> RopeScaling | None:
    """The scaling of one object of settings. config: the whole, for contexts that it leaves out."""
    if "rope_type" in used.values and used.values["rope_type"] is None:
        raise ModelError(f"{used.name('rope_type')} is null; remove it, or name the scaling")
    kind = used.text("rope_type", used.text("type", "default"))
    if kind in ("default", "mrope"):  # several axes of positions, which are equal in a text
        return None
    context = config.integer("max_position_embeddings", 2048)
    named = config.integer(_ORIGINAL, context)
    original = used.integer(_ORIGINAL, named)
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            used.number("factor"),
            used.number("low_freq_factor"),
            used.number("high_freq_factor"),
            original,
        )
    if kind == "yarn":
        factor = used.number("factor", context / max(original, 1))
        usual = yarn_magnitude(factor)
        if used.get("mscale") and used.get("mscale_all_dim"):
            usual = yarn_magnitude(factor, used.number("mscale"))
            usual /= yarn_magnitude(factor, used.number("mscale_all_dim"))
        return RopeScaling(
            "yarn",
            factor,
            original_context=original,
            beta_fast=used.number("beta_fast", 32.0),
            beta_slow=used.number("beta_slow", 1.0),
            truncate=used.boolean("truncate", True),
            magnitude=used.number("attention_factor", usual),
        )
    if kind in ("longrope", "su"):
        factor = used.number("factor", context / max(original, 1))
        return RopeScaling(
            "longrope",
            max(factor, 1e-6),
            original_context=original,
            magnitude=used.number("attention_factor", longrope_magnitude(factor, original)),
            short_factors=used.numbers("short_factor"),
            long_factors=used.numbers("long_factor"),
        )
    if kind == "linear":
        return RopeScaling("linear", used.number("factor"))
    # transformers scales dynamically from max_position_embeddings on, whatever else is named. Of
    # another kind: RopeScaling names those that are supported.
    return RopeScaling(kind, used.number("factor", 1.0), original_context=context)


def gguf_has_bias(facts: GgufFacts) -> bool:
    """True if queries, keys and values have biases, alone or in one tensor."""
    return facts.has("blk.0.attn_q.bias") or facts.has("blk.0.attn_qkv.bias")


def gguf_attention(metadata: Settings, **more: Any) -> AttentionSpec:
    """The attention of GGUF metadata, with the first rope."""
    heads = metadata.integer("attention.head_count")
    if heads < 1:
        raise ModelError(f"{metadata.name('attention.head_count')} is {heads}")
    size = metadata.integer("attention.key_length", metadata.integer("embedding_length") // heads)
    check_size("head_size", size)
    fields: dict[str, Any] = {
        "heads": heads,
        "kv_heads": check_groups(heads, metadata.integer("attention.head_count_kv", heads)),
        "key_size": size,
        "value_size": metadata.integer("attention.value_length", size),
        "scale": attention_scale(size),
        "rope": 0,
    }
    return AttentionSpec(**(fields | more))


def gguf_experts(metadata: Settings, **more: Any) -> ExpertsSpec:
    """The experts of GGUF metadata: usually softmax of all, and the chosen scaled to sum 1."""
    own = "expert_feed_forward_length"
    expert = FeedForwardSpec(metadata.integer(own if own in metadata else "feed_forward_length"))
    fields: dict[str, Any] = {
        "count": metadata.integer("expert_count"),
        "used": metadata.integer("expert_used_count"),
        "expert": expert,
    }
    return ExpertsSpec(**(fields | more))


def gguf_model(
    metadata: Settings,
    name: str,
    architecture: str,
    facts: GgufFacts,
    kinds: Sequence[BlockSpec],
    ropes: Sequence[RopeSpec],
    kind_of_layer: Sequence[int] | None = None,
    **more: Any,
) -> ModelSpec:
    """A model's spec from GGUF metadata."""
    layers = gguf_layer_count(metadata)
    fields: dict[str, Any] = {
        "name": name,
        "architecture": architecture,
        "hidden_size": metadata.integer("embedding_length"),
        "vocab_size": facts.vocab_size,
        "context_size": metadata.integer("context_length", 2048),
        "kinds": tuple(kinds),
        "kind_of_layer": (0,) * layers if kind_of_layer is None else tuple(kind_of_layer),
        "ropes": tuple(ropes),
        "norm_epsilon": metadata.number("attention.layer_norm_rms_epsilon", 1e-5),
        "tied": facts.tied,
    }
    return ModelSpec(**(fields | more))


def gguf_rope(
    metadata: Settings,
    size: int,
    facts: GgufFacts,
    theta: float = 10000.0,
    base: str = "freq_base",
    truncate: bool = True,
    betas: bool = False,
) -> RopeSpec:
    """The rope that llama.cpp applies to heads of `size`.

    base: the key of the base, beneath "rope.". truncate: as RopeScaling's. betas: whether the file
    sets the ends of YaRN's ramp; llama.cpp reads yarn_beta_fast and yarn_beta_slow for Mistral 3
    alone, and yarn_ext_factor and yarn_attn_factor for no architecture that Hearth runs.
    """
    rotated = metadata.integer("rope.dimension_count", size)
    scaling = _gguf_scaling(metadata, facts, betas)
    if scaling is not None:
        scaling = replace(scaling, truncate=truncate)
    factors = facts.rope_factors.get("rope_freqs")
    return make_rope(rotated, metadata.number(f"rope.{base}", theta), scaling, factors)


def _gguf_scaling(metadata: Settings, facts: GgufFacts, betas: bool) -> RopeScaling | None:
    """Linear where a factor comes without a type."""
    # The second key is the spelling in files of 2023.
    keys = ("rope.scaling.factor", "rope.scale_linear")
    factor = next((metadata.number(key, 0.0) for key in keys if key in metadata), 0.0)
    kind = metadata.text("rope.scaling.type", "linear")
    magnitude = metadata.number("rope.scaling.attn_factor", 1.0)
    original = metadata.integer(
        "rope.scaling.original_context_length", metadata.integer("context_length", 2048)
    )
    if "rope_factors_long" in facts.rope_factors:
        return RopeScaling(
            "longrope",
            1.0,
            original_context=original,
            magnitude=magnitude,
            short_factors=facts.rope_factors.get("rope_factors_short", ()),
            long_factors=facts.rope_factors["rope_factors_long"],
        )
    if kind == "yarn" and factor not in (0.0, 1.0):
        return RopeScaling(
            "yarn",
            factor,
            original_context=original,
            beta_fast=metadata.number("rope.scaling.yarn_beta_fast", 32.0) if betas else 32.0,
            beta_slow=metadata.number("rope.scaling.yarn_beta_slow", 1.0) if betas else 1.0,
            magnitude=magnitude * yarn_magnitude(factor),
        )
    if kind == "longrope":
        raise ModelError("tensor rope_factors_long.weight is missing")
    if kind not in ("linear", "none", "yarn"):
        raise ModelError(
            f"rope scaling {shown(kind)} is not supported; Hearth reads none, linear, yarn, "
            "longrope"
        )
    if kind != "linear" or factor in (0.0, 1.0):
        return None if magnitude == 1.0 else RopeScaling("linear", 1.0, magnitude=magnitude)
    return RopeScaling("linear", factor, magnitude=magnitude)
