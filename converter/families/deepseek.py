"""DeepSeek-V2 and V3, and GLM-4.7-Flash: latent attention, and experts beside a shared one."""

import math
from dataclasses import replace

import numpy as np

from hearth.converter.blocks import (
    BlockSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LatentAttentionSpec,
)
from hearth.converter.errors import ModelError
from hearth.converter.families.base import Family, Files, GgufFacts, Names, Recipe, find, picked
from hearth.converter.families.common import (
    GGUF_SHARED_EXPERT,
    GGUF_TENSORS,
    TENSORS,
    activation,
    feed_forward,
    gguf_experts,
    gguf_layer_count,
    gguf_model,
    gguf_rope,
    layer_count,
    model,
    rope,
)
from hearth.converter.families.layers import with_defaults
from hearth.converter.families.rope import yarn_magnitude
from hearth.converter.families.settings import Settings
from hearth.converter.spec import ModelSpec, check_positive, check_size
from hearth.converter.stored import Indices, PickedRows, Stacked, Stored, Transposed
from hearth.converter.tensors import TensorSpec

# Settings that transformers fills in where a config.json leaves them out.
_V2 = {"n_shared_experts": 2, "q_lora_rank": 1536}
_V3 = {
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 3,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "q_lora_rank": 1536,
    "max_position_embeddings": 4096,
}
_GLM = {
    "rms_norm_eps": 1e-5,
    "routed_scaling_factor": 1.8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "q_lora_rank": 768,
    "max_position_embeddings": 202752,
}
_EXPERT_COUNT = "n_routed_experts"
# Of the latents' norms in transformers, which gives them no other.
_NORM_EPSILON = 1e-6


def _attention(config: Settings) -> LatentAttentionSpec:
    config.refuse("attention_bias", False, why="Hearth runs latent attention without biases")
    config.refuse("rope_interleave", True, why="rotary pairs must lie side by side")
    sizes = [
        check_size("head_size", config.integer(f"qk_{part}_head_dim")) for part in ("nope", "rope")
    ]
    used = config.section("rope_scaling")
    used = used if used.values else config.section("rope_parameters")
    magnitude = 1.0
    if used.text("rope_type", used.text("type", "default")) != "default":
        all_dim = used.number("mscale_all_dim", 0.0)
        magnitude = yarn_magnitude(used.number("factor"), all_dim) if all_dim else 1.0
    return LatentAttentionSpec(
        heads=config.integer("num_attention_heads"),
        query_rank=config.integer("q_lora_rank", 0),
        kv_rank=config.integer("kv_lora_rank"),
        nope_size=sizes[0],
        rope_size=sizes[1],
        value_size=config.integer("v_head_dim"),
        scale=_scale(sum(sizes), magnitude),
        rope=0,
        norm_epsilon=_NORM_EPSILON,
    )


def _scale(query_size: int, magnitude: float) -> float:
    """The scale of scores; magnitude: YaRN's factor of queries and of keys."""
    return magnitude * magnitude / math.sqrt(query_size)


def _model(
    config: Settings, name: str, architecture: str, experts: ExpertsSpec, dense: list[bool]
) -> ModelSpec:
    """dense: for each layer, whether it has a feed-forward alone."""
    mixer = _attention(config)
    shared = config.integer("n_shared_experts", 0)
    beside = feed_forward(config, shared * experts.expert.size) if shared else None
    blocks = [BlockSpec(mixer, feed_forward(config)), BlockSpec(mixer, beside, experts)]
    ropes = [rope(config, mixer.rope_size)]
    return model(config, name, architecture, blocks, ropes, [int(not each) for each in dense])


def _experts(config: Settings, **more: object) -> ExpertsSpec:
    fields: dict[str, object] = {"scale": config.number("routed_scaling_factor", 1.0)}
    expert = FeedForwardSpec(config.integer("moe_intermediate_size"), activation(config))
    return ExpertsSpec(
        config.integer(_EXPERT_COUNT),
        config.integer("num_experts_per_tok"),
        expert,
        **(fields | more),  # type: ignore[arg-type]
    )


def _dense_first(config: Settings) -> list[bool]:
    config.refuse("moe_layer_freq", 1, why="Hearth runs models with experts in every layer")
    first = config.integer("first_k_dense_replace", 0)
    return [layer < first for layer in range(layer_count(config))]


def _v2(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _V2)
    why = "Hearth runs the router of DeepSeek-V2-Lite: greedy, not normalised"
    config.refuse("topk_method", "greedy", why=why)
    config.refuse("norm_topk_prob", False, why=why)
    experts = _experts(config, normalize=False)
    return _model(config, name, "deepseek2", experts, _dense_first(config))


def _v3_experts(config: Settings) -> ExpertsSpec:
    why = "Hearth runs the router of DeepSeek-V3: the best by score and bias, in groups"
    config.refuse("topk_method", "noaux_tc", why=why)
    return _experts(
        config,
        scores="sigmoid",
        normalize=config.boolean("norm_topk_prob", True),
        choice_bias=True,
        groups=config.integer("n_group", 1),
        used_groups=config.integer("topk_group", 1),
    )


def _v3(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _V3)
    return _model(config, name, "deepseek2", _v3_experts(config), _dense_first(config))


def _glm(config: Settings, name: str) -> ModelSpec:
    config = with_defaults(config, _GLM)
    layers = layer_count(config)
    kinds = config.texts("mlp_layer_types", layers, ["dense"] + ["sparse"] * (layers - 1))
    dense = [kind == "dense" for kind in kinds]
    return _model(config, name, "glm4_moe_lite", _v3_experts(config), dense)


def _gguf(metadata: Settings, name: str, facts: GgufFacts) -> ModelSpec:
    layers = gguf_layer_count(metadata)
    if metadata.number("attention.temperature_scale", 0.0):
        raise ModelError(
            f"{metadata.name('attention.temperature_scale')} is "
            f"{metadata.number('attention.temperature_scale'):g}; Hearth runs latent attention "
            "whose queries do not grow with their position"
        )
    rotated = check_size("head_size", metadata.integer("rope.dimension_count"))
    # Files of before 2025 give the sizes of whole heads without "_mla".
    ending = "_mla" if "attention.key_length_mla" in metadata else ""
    key_size = metadata.integer(f"attention.key_length{ending}")
    value_size = metadata.integer(f"attention.value_length{ending}")
    factor = metadata.number("rope.scaling.factor", 1.0)
    growth = metadata.number("rope.scaling.yarn_log_multiplier", 0.0)
    magnitude = 1 + growth * math.log(factor) if factor > 1 else 1.0
    check_positive("the magnitude of yarn_log_multiplier", magnitude)
    mixer = LatentAttentionSpec(
        heads=metadata.integer("attention.head_count"),
        query_rank=metadata.integer("attention.q_lora_rank", 0),
        kv_rank=metadata.integer("attention.kv_lora_rank"),
        nope_size=key_size - rotated,
        rope_size=rotated,
        value_size=value_size,
        scale=_scale(check_size("head_size", key_size), magnitude),
        rope=0,
        norm_epsilon=metadata.number("attention.layer_norm_rms_epsilon", 1e-6),
    )
    choice_bias = any(facts.has(f"blk.{layer}.exp_probs_b.bias") for layer in range(layers))
    experts = gguf_experts(
        metadata,
        scores=_gating(metadata, choice_bias),
        normalize=metadata.boolean("expert_weights_norm", False),
        scale=metadata.number("expert_weights_scale", 1.0) or 1.0,
        choice_bias=choice_bias,
        groups=metadata.integer("expert_group_count", 1) or 1,
        used_groups=metadata.integer("expert_group_used_count", 1) or 1,
    )
    shared = metadata.integer("expert_shared_count", 0)
    beside = FeedForwardSpec(shared * experts.expert.size) if shared else None
    dense = FeedForwardSpec(metadata.integer("feed_forward_length"))
    blocks = [BlockSpec(mixer, dense), BlockSpec(mixer, beside, experts)]
    first = metadata.integer("leading_dense_block_count", 0)
    # The magnitude of YaRN is in the scale of scores alone.
    ropes = [replace(gguf_rope(metadata, rotated, facts), magnitude=1.0)]
    order = [int(layer >= first) for layer in range(layers)]
    return gguf_model(metadata, name, "deepseek2", facts, blocks, ropes, order)


def _gating(metadata: Settings, choice_bias: bool) -> str:
    """Scores of the router. Older files leave them out; a bias of the choice is of sigmoids."""
    kind = metadata.integer("expert_gating_func", 0) or 1 + choice_bias
    if kind not in (1, 2):
        raise ModelError(
            f"{metadata.name('expert_gating_func')} is {kind}; Hearth runs 1 (softmax) and 2 "
            "(sigmoid)"
        )
    return ("softmax", "sigmoid")[kind - 1]


def _mixer(spec: ModelSpec, tensor: TensorSpec) -> LatentAttentionSpec:
    mixer = spec.kinds[spec.kind_of_layer[tensor.layer]].mixer
    assert isinstance(mixer, LatentAttentionSpec)
    return mixer


def _pairs(size: int) -> Indices:
    """Stored places of a rotated part, whose pairs lie side by side: 0, 2, 4 ... 1, 3, 5 ..."""
    return np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])


def _query_order(spec: ModelSpec, tensor: TensorSpec) -> Indices:
    mixer = _mixer(spec, tensor)
    head = np.concatenate([np.arange(mixer.nope_size), mixer.nope_size + _pairs(mixer.rope_size)])
    order: Indices = (np.arange(mixer.heads)[:, None] * mixer.query_size + head).reshape(-1)
    return order


def _latent_order(spec: ModelSpec, tensor: TensorSpec) -> Indices:
    mixer = _mixer(spec, tensor)
    return np.concatenate([np.arange(mixer.kv_rank), mixer.kv_rank + _pairs(mixer.rope_size)])


def _queries(direct: str, from_latent: str) -> Recipe:
    """Queries as products of the input, or of their latent."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        name = from_latent if _mixer(spec, tensor).query_rank else direct
        return find(files, spec, tensor, picked(name, _query_order))

    return recipe


def _head_keys(both: str, own: str = "") -> Recipe:
    """wk_b: each head's rows of `both` (keys, then values), turned; or a tensor of their own."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        mixer, name = _mixer(spec, tensor), own.replace("{layer}", str(tensor.layer))
        if name in files:
            return files.matrix(name, *tensor.shape)
        whole, rows = _whole(files, both, mixer, tensor), mixer.nope_size + mixer.value_size
        return Stacked(
            [
                Transposed(PickedRows(whole, np.arange(h * rows, h * rows + mixer.nope_size)))
                for h in range(mixer.heads)
            ]
        )

    return recipe


def _head_values(both: str, own: str = "") -> Recipe:
    """wv_b: the last rows of each head in `both`, or a tensor of their own."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        mixer, name = _mixer(spec, tensor), own.replace("{layer}", str(tensor.layer))
        if name in files:
            return files.matrix(name, *tensor.shape)
        rows = mixer.nope_size + mixer.value_size
        whole = _whole(files, both, mixer, tensor)
        order = np.arange(mixer.heads)[:, None] * rows + np.arange(mixer.nope_size, rows)
        return PickedRows(whole, order.reshape(-1))

    return recipe


def _whole(files: Files, name: str, mixer: LatentAttentionSpec, tensor: TensorSpec) -> Stored:
    rows = mixer.heads * (mixer.nope_size + mixer.value_size)
    return files.matrix(name.replace("{layer}", str(tensor.layer)), rows, mixer.kv_rank)


def _beside_experts(dense: Recipe, shared: Recipe) -> Recipe:
    """A feed-forward's tensor, which has another name in layers with experts."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        block = spec.kinds[spec.kind_of_layer[tensor.layer]]
        return find(files, spec, tensor, shared if block.experts is not None else dense)

    return recipe


_SELF = "model.layers.{layer}.self_attn."
_SHARED = "model.layers.{layer}.mlp.shared_experts."
_BOTH = _SELF + "kv_b_proj.weight"
_NAMES: Names = {
    **TENSORS,
    "wq_a": _SELF + "q_a_proj.weight",
    "q_a_norm": _SELF + "q_a_layernorm.weight",
    "wq": _queries(_SELF + "q_proj.weight", _SELF + "q_b_proj.weight"),
    "wkv_a": picked(_SELF + "kv_a_proj_with_mqa.weight", _latent_order),
    "kv_a_norm": _SELF + "kv_a_layernorm.weight",
    "wk_b": _head_keys(_BOTH),
    "wv_b": _head_values(_BOTH),
    "choice_bias": "model.layers.{layer}.mlp.gate.e_score_correction_bias",
    "w1": _beside_experts(TENSORS["w1"], _SHARED + "gate_proj.weight"),
    "w2": _beside_experts(TENSORS["w2"], _SHARED + "down_proj.weight"),
    "w3": _beside_experts(TENSORS["w3"], _SHARED + "up_proj.weight"),
}

_BLOCK = "blk.{layer}.attn_"
_GGUF_BOTH = _BLOCK + "kv_b.weight"
_GGUF_NAMES: Names = {
    **GGUF_TENSORS,
    "wq_a": _BLOCK + "q_a.weight",
    "q_a_norm": _BLOCK + "q_a_norm.weight",
    "wq": _queries(_BLOCK + "q.weight", _BLOCK + "q_b.weight"),
    "wkv_a": picked(_BLOCK + "kv_a_mqa.weight", _latent_order),
    "kv_a_norm": _BLOCK + "kv_a_norm.weight",
    "wk_b": _head_keys(_GGUF_BOTH, _BLOCK + "k_b.weight"),
    "wv_b": _head_values(_GGUF_BOTH, _BLOCK + "v_b.weight"),
    **{
        part: _beside_experts(GGUF_TENSORS[part], GGUF_SHARED_EXPERT[part])
        for part in ("w1", "w2", "w3")
    },
}

# The layers behind the last predict further tokens; transformers leaves them out too.
FAMILIES = (
    Family(
        name="DeepSeek-V2",
        model_types=("deepseek_v2",),
        aliases=(("num_experts", _EXPERT_COUNT),),
        classes=("DeepseekV2ForCausalLM",),
        config=_v2,
        tensors=_NAMES,
        architectures=("deepseek2",),
        gguf=_gguf,
        gguf_tensors=_GGUF_NAMES,
    ),
    Family(
        name="DeepSeek-V3",
        model_types=("deepseek_v3",),
        aliases=(("num_local_experts", _EXPERT_COUNT),),
        classes=("DeepseekV3ForCausalLM",),
        config=_v3,
        tensors=_NAMES,
        further_layers=1,
    ),
    Family(
        name="GLM-4.7-Flash",
        model_types=("glm4_moe_lite",),
        aliases=(("num_local_experts", _EXPERT_COUNT),),
        classes=("Glm4MoeLiteForCausalLM",),
        reads=("partial_rotary_factor",),
        config=_glm,
        tensors=_NAMES,
        further_layers=1,
    ),
)
