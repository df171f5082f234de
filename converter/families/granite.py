"""Granite 3 and 4: Llama with factors of the embedding, scores, residual stream and logits.

Of Granite 4 those whose layers are all attention; of either also the ones with experts.
"""

from hearth.converter.blocks import BlockSpec, ExpertsSpec, FeedForwardSpec, RopeSpec
from hearth.converter.errors import ModelError
from hearth.converter.families.base import Family, GgufFacts, Names
from hearth.converter.families.common import (
    GGUF_SHARED_EXPERT,
    GGUF_TENSORS,
    TENSORS,
    activation,
    attention,
    feed_forward,
    gguf_attention,
    gguf_experts,
    gguf_has_bias,
    gguf_model,
    gguf_rope,
    head_size,
    layer_count,
    model,
    rope,
)
from hearth.converter.families.fused import fused_experts, fused_gate_up, where
from hearth.converter.families.layers import FULL
from hearth.converter.families.llama import PAIRED
from hearth.converter.families.settings import Settings
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec, check_positive


def _granite(config: Settings, name: str) -> ModelSpec:
    mlp_bias = config.boolean("mlp_bias", False)
    inner = feed_forward(config, bias=mlp_bias, output_bias=mlp_bias)
    return _model(config, name, inner, None)


def _granite_moe(config: Settings, name: str) -> ModelSpec:
    return _model(config, name, None, _experts(config))


def _granite_hybrid(config: Settings, name: str) -> ModelSpec:
    layers = layer_count(config)
    keys = ("layer_types", "layers_block_type")  # the second in files of 2025
    key = next((each for each in keys if each in config), keys[0])
    kinds = config.texts(key, layers, ["linear_attention"] * layers)
    for layer, kind in enumerate(kinds):
        if kind not in ("attention", FULL):
            raise ModelError(
                f"{config.name(key)}: layer {layer} is {shown(kind)}; Hearth runs those Granite 4 "
                "models whose layers are all attention"
            )
    # The feed-forward of every token; experts are beside it.
    shared = FeedForwardSpec(config.integer("shared_intermediate_size", 1024), activation(config))
    experts = _experts(config) if config.integer("num_local_experts", 8) else None
    rotated = config.text("position_embedding_type", "nope") == "rope"
    return _model(config, name, shared, experts, rotated)


def _experts(config: Settings) -> ExpertsSpec:
    return ExpertsSpec(
        config.integer("num_local_experts", 8),
        config.integer("num_experts_per_tok", 2),
        FeedForwardSpec(config.integer("intermediate_size"), activation(config)),
    )


def _model(
    config: Settings,
    name: str,
    inner: FeedForwardSpec | None,
    experts: ExpertsSpec | None,
    rotated: bool = True,
) -> ModelSpec:
    bias = config.boolean("attention_bias", False)
    mixer = attention(
        config,
        scale=config.number("attention_multiplier", 1.0),
        rope=0 if rotated else None,
        bias=bias,
        output_bias=bias,
    )
    residual = config.number("residual_multiplier", 1.0)
    ropes = [rope(config, head_size(config))] if rotated else []
    return model(
        config,
        name,
        "granite",
        [BlockSpec(mixer, inner, experts, residual_scale=residual)],
        ropes,
        embedding_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=_inverse(config, "logits_scaling"),
    )


def _inverse(config: Settings, key: str) -> float:
    """The factor of logits that are divided by a setting."""
    divisor = config.number(key, 1.0)
    check_positive(config.name(key), divisor)
    return 1 / divisor


def _gguf(metadata: Settings, name: str, facts: GgufFacts) -> ModelSpec:
    mixer = gguf_attention(metadata, bias=gguf_has_bias(facts))
    scale = metadata.number("attention.scale", mixer.scale)
    # Without this key all layers have rotary positions.
    rotated = bool(metadata.get("rope.scaling.finetuned", True))
    mixer = gguf_attention(metadata, bias=mixer.bias, scale=scale, rope=0 if rotated else None)
    experts = gguf_experts(metadata) if metadata.integer("expert_count", 0) else None
    key = "expert_shared_feed_forward_length" if experts else "feed_forward_length"
    size = metadata.integer(key, 0)
    inner = FeedForwardSpec(size) if size or not experts else None
    ropes: list[RopeSpec] = [gguf_rope(metadata, mixer.key_size, facts)] if rotated else []
    return gguf_model(
        metadata,
        name,
        "granite",
        facts,
        [BlockSpec(mixer, inner, experts, residual_scale=metadata.number("residual_scale", 1.0))],
        ropes,
        embedding_scale=metadata.number("embedding_scale", 1.0),
        logit_scale=_inverse(metadata, "logit_scale"),
    )


_LAYER = "model.layers.{layer}."
_MOE = _LAYER + "block_sparse_moe."
_EXPERTS: Names = {
    **TENSORS,
    "router": _MOE + "router.layer.weight",
    "experts_w1": fused_experts(_MOE + "input_linear.weight", 0),
    "experts_w3": fused_experts(_MOE + "input_linear.weight", 1),
    "experts_w2": _MOE + "output_linear.weight",
}
_SHARED: Names = {
    **_EXPERTS,
    **fused_gate_up(_LAYER + "shared_mlp.input_linear"),
    "w2": _LAYER + "shared_mlp.output_linear.weight",
}
_GGUF: Names = {
    **GGUF_TENSORS,
    **PAIRED,
    **{
        part: where(name, name, GGUF_TENSORS[part])
        for part, name in GGUF_SHARED_EXPERT.items()
        if part in GGUF_TENSORS and isinstance(name, str)
    },
}

FAMILIES = (
    Family(
        name="Granite",
        model_types=("granite",),
        classes=("GraniteForCausalLM",),
        config=_granite,
        tensors=TENSORS,
        architectures=("granite", "granitemoe"),
        gguf=_gguf,
        gguf_tensors=_GGUF,
    ),
    Family(
        name="Granite with experts",
        model_types=("granitemoe",),
        classes=("GraniteMoeForCausalLM",),
        config=_granite_moe,
        tensors=_EXPERTS,
    ),
    Family(
        name="Granite 4",
        model_types=("granitemoehybrid",),
        classes=("GraniteMoeHybridForCausalLM",),
        reads=("layer_types",),
        config=_granite_hybrid,
        tensors=_SHARED,
    ),
)
