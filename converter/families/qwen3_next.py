"""Qwen3-Next, Qwen3.5 and Qwen3.6: gated delta rules with layers of attention between them.

Norms are stored less one. The rows of a query head lie before those of its gate. As GGUF, value
heads of Qwen3.5 lie by turns: first one of each key head, then another of each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from hearth.converter.blocks import (
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    FeedForwardSpec,
    GatedDeltaSpec,
)
from hearth.converter.errors import ModelError
from hearth.converter.families.base import (
    Family,
    Files,
    GgufFacts,
    Names,
    Recipe,
    computed,
    find,
    one_more,
)
from hearth.converter.families.common import (
    GGUF_SHARED_EXPERT,
    GGUF_TENSORS,
    TENSORS,
    activation,
    attention,
    feed_forward,
    gguf_attention,
    gguf_experts,
    gguf_layer_count,
    gguf_model,
    gguf_rope,
    head_size,
    layer_count,
    model,
    rope,
)
from hearth.converter.families.fused import fused_experts, where
from hearth.converter.families.layers import with_defaults
from hearth.converter.families.settings import Settings
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec, check_size
from hearth.converter.stored import Indices, PickedColumns, PickedRows, Stored
from hearth.converter.tensors import TensorSpec

# Part of a head that is rotated, where a file does not say.
_ROTATED = 0.25
_INTERVAL = 4
_LINEAR, _FULL = "linear_attention", "full_attention"
# Settings that transformers fills in where a config.json leaves them out, by GGUF's architecture.
_COMMON: dict[str, Any] = {
    "num_attention_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
_EXPERT_SIZES: dict[str, Any] = {
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3next": {
        **_COMMON,
        **_EXPERT_SIZES,
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "num_experts": 512,
        "num_experts_per_tok": 10,
    },
    "qwen35": {
        **_COMMON,
        "vocab_size": 248320,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_key_value_heads": 4,
    },
    "qwen35moe": {
        **_COMMON,
        **_EXPERT_SIZES,
        "vocab_size": 248320,
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "num_experts": 256,
        "num_experts_per_tok": 8,
    },
}

# -- shapes --


def _config(config: Settings, name: str, architecture: str) -> ModelSpec:
    config = with_defaults(config, _DEFAULTS[architecture])
    layers = layer_count(config)
    interval = max(1, config.integer("full_attention_interval", _INTERVAL))
    usual = [_FULL if (layer + 1) % interval == 0 else _LINEAR for layer in range(layers)]
    types = config.texts("layer_types", layers, usual)
    bias = config.boolean("attention_bias", False)
    mixer = attention(config, bias=bias, output_bias=bias, head_norm=True, gate=True)
    delta = _gated_delta(
        config.integer("linear_num_key_heads"),
        config.integer("linear_num_value_heads"),
        key_size=config.integer("linear_key_head_dim"),
        value_size=config.integer("linear_value_head_dim"),
        width=config.integer("linear_conv_kernel_dim"),
        activation=activation(config),
    )
    # Qwen3.5 has no such setting.
    normalize = architecture != "qwen3next" or config.boolean("norm_topk_prob", True)
    kinds: list[BlockSpec] = []
    for layer, kind in enumerate(types):
        if kind not in (_LINEAR, _FULL):
            raise ModelError(
                f"{config.name('layer_types')} has {shown(kind)}; Hearth runs {_LINEAR} and {_FULL}"
            )
        own = delta if kind == _LINEAR else mixer
        kinds.append(_block(config, own, _has_experts(config, architecture, layer), normalize))
    ropes = [rope(config, head_size(config), partial=_ROTATED)]
    distinct = list(dict.fromkeys(kinds))
    order = [distinct.index(kind) for kind in kinds]
    return model(config, name, architecture, distinct, ropes, order)


def _gated_delta(key_heads: int, value_heads: int, **more: int | str) -> GatedDeltaSpec:
    if key_heads < 1 or value_heads < 1 or value_heads % key_heads:
        raise ModelError(f"{value_heads} value heads cannot be shared equally by {key_heads}")
    check_size("heads", value_heads)
    return GatedDeltaSpec(key_heads, value_heads // key_heads, **more)  # type: ignore[arg-type]


def _has_experts(config: Settings, architecture: str, layer: int) -> bool:
    """True for a layer with experts: in Qwen3.5 all or none has them, whatever a file says."""
    if architecture != "qwen3next":
        return architecture == "qwen35moe"
    dense = config.numbered("mlp_only_layers")
    step = max(1, config.integer("decoder_sparse_step", 1))
    return config.integer("num_experts") > 0 and layer not in dense and (layer + 1) % step == 0


def _block(
    config: Settings, mixer: AttentionSpec | GatedDeltaSpec, has_experts: bool, normalize: bool
) -> BlockSpec:
    if not has_experts:
        return BlockSpec(mixer, feed_forward(config))
    chosen = ExpertsSpec(
        config.integer("num_experts"),
        config.integer("num_experts_per_tok"),
        feed_forward(config, config.integer("moe_intermediate_size")),
        normalize=normalize,
    )
    shared = feed_forward(config, config.integer("shared_expert_intermediate_size"))
    return BlockSpec(mixer, shared, chosen, feed_forward_gate=True)


def _gguf(metadata: Settings, name: str, facts: GgufFacts, architecture: str) -> ModelSpec:
    layers = gguf_layer_count(metadata)
    recurrent = _recurrent(metadata, layers)
    mixer = gguf_attention(metadata, head_norm=True, gate=True)
    heads = metadata.integer("ssm.time_step_rank")
    delta = _gated_delta(
        metadata.integer("ssm.group_count"),
        heads,
        key_size=metadata.integer("ssm.state_size"),
        value_size=metadata.integer("ssm.inner_size") // max(heads, 1),
        width=metadata.integer("ssm.conv_kernel"),
    )
    if architecture != "qwen3next":
        outputs = [f"blk.{layer}.ssm_out.weight" for layer in range(layers) if recurrent[layer]]
        delta = _tiled(delta, max(map(facts.block, outputs), default=1))
    kinds = [_gguf_block(metadata, each) for each in (mixer, delta)]
    ropes = [gguf_rope(metadata, mixer.key_size, facts)]
    order = [int(each) for each in recurrent]
    return gguf_model(metadata, name, architecture, facts, kinds, ropes, order)


def _recurrent(metadata: Settings, layers: int) -> list[bool]:
    """True for each layer with a gated delta rule."""
    listed = metadata.get("attention.recurrent_layers")
    if listed is not None:
        if not isinstance(listed, list) or len(listed) < layers:
            raise ModelError(f"{metadata.name('attention.recurrent_layers')} is not a list of them")
        return [bool(each) for each in listed[:layers]]
    interval = max(1, metadata.integer("full_attention_interval", _INTERVAL))
    return [(layer + 1) % interval != 0 for layer in range(layers)]


def _tiled(delta: GatedDeltaSpec, block: int) -> GatedDeltaSpec:
    """The smallest tile whose value heads are whole blocks of the output's columns.

    The file's value heads, and so the columns of its output, lie in one tile of all key heads.
    Blocks cannot be cut, and a smaller tile can be divided over more nodes.
    """
    fields = {name: getattr(delta, name) for name in delta.__slots__}
    tiles = range(1, delta.key_heads + 1)
    sizes = (t for t in tiles if delta.key_heads % t == 0 and t * delta.value_size % block == 0)
    tile = next(sizes, delta.key_heads)
    return GatedDeltaSpec(**(fields | {"tile": tile if delta.group > 1 else 1}))


def _gguf_block(metadata: Settings, mixer: AttentionSpec | GatedDeltaSpec) -> BlockSpec:
    if not metadata.integer("expert_count", 0):
        return BlockSpec(mixer, FeedForwardSpec(metadata.integer("feed_forward_length")))
    shared = FeedForwardSpec(metadata.integer("expert_shared_feed_forward_length"))
    return BlockSpec(mixer, shared, gguf_experts(metadata), feed_forward_gate=True)


# -- tensors --


def _kind(spec: ModelSpec, tensor: TensorSpec) -> BlockSpec:
    return spec.kinds[spec.kind_of_layer[tensor.layer]]


def _delta(spec: ModelSpec, tensor: TensorSpec) -> GatedDeltaSpec:
    mixer = _kind(spec, tensor).mixer
    assert isinstance(mixer, GatedDeltaSpec)
    return mixer


def _by_mixer(delta: Recipe, attends: Recipe) -> Recipe:
    """One recipe for the layers of each mixer."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        is_delta = isinstance(_kind(spec, tensor).mixer, GatedDeltaSpec)
        return find(files, spec, tensor, delta if is_delta else attends)

    return recipe


def _by_experts(with_experts: Recipe, without: Recipe) -> Recipe:
    """One recipe for layers with experts, another for those without."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        has_experts = _kind(spec, tensor).experts is not None
        return find(files, spec, tensor, with_experts if has_experts else without)

    return recipe


def _rows(
    name: str, rows: Callable[[], Indices], stored: int, tensor: TensorSpec, files: Files
) -> Stored:
    """Rows (elements of a vector) of a stored tensor that has `stored` of them.

    rows: called once the file has that shape; of a wrong one they may be a large array.
    """
    place = name.replace("{layer}", str(tensor.layer))
    if tensor.vector:
        return PickedRows(files.vector(place, stored), rows())
    return PickedRows(files.matrix(place, stored, tensor.shape[1]), rows())


def _runs(size: int, step: int, first: int, count: int) -> Indices:
    """`count` runs of `size` rows, one each `step` rows from `first`."""
    return (np.arange(count)[:, None] * step + first + np.arange(size)).reshape(-1)


def _query(name: str, gate: bool) -> Recipe:
    """Rows of each query head, or of its gate, which lie behind them."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        mixer = _kind(spec, tensor).mixer
        assert isinstance(mixer, AttentionSpec)
        size = mixer.key_size
        rows = partial(_runs, size, 2 * size, gate * size, mixer.heads)
        return _rows(name, rows, 2 * mixer.heads * size, tensor, files)

    return recipe


def _joint(name: str, part: str) -> Recipe:
    """Part q, k, v or g of rows that lie key head by key head: Qwen3-Next's in_proj_qkvz."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        delta = _delta(spec, tensor)
        values = delta.group * delta.value_size
        sizes = {"q": delta.key_size, "k": delta.key_size, "v": values, "g": values}
        return _of_key_heads(name, part, sizes, files, spec, tensor)

    return recipe


def _joint_heads(name: str, part: str) -> Recipe:
    """Part b or a of rows that lie key head by key head: Qwen3-Next's in_proj_ba."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        group = _delta(spec, tensor).group
        return _of_key_heads(name, part, {"b": group, "a": group}, files, spec, tensor)

    return recipe


def _of_key_heads(
    name: str,
    part: str,
    sizes: dict[str, int],
    files: Files,
    spec: ModelSpec,
    tensor: TensorSpec,
) -> Stored:
    """sizes: of each part of a key head's rows, in order."""
    heads, whole = _delta(spec, tensor).key_heads, sum(sizes.values())
    names = list(sizes)
    first = sum(sizes[each] for each in names[: names.index(part)])
    return _rows(
        name, partial(_runs, sizes[part], whole, first, heads), heads * whole, tensor, files
    )


Order = Callable[[GatedDeltaSpec, int], Indices]


def _grouped(delta: GatedDeltaSpec, size: int) -> Indices:
    """Value heads of `size` rows each, as they are stored."""
    return np.arange(delta.heads * size)


def _turned(delta: GatedDeltaSpec, size: int) -> Indices:
    """Value heads that are stored in one tile of all key heads, in the order of our tiles."""
    return (_turned_heads(delta)[:, None] * size + np.arange(size)).reshape(-1)


def _turned_heads(delta: GatedDeltaSpec) -> Indices:
    tile, within = np.divmod(np.arange(delta.heads), delta.tile * delta.group)
    turn, of_tile = np.divmod(within, delta.tile)
    stored: Indices = turn * delta.key_heads + tile * delta.tile + of_tile
    return stored


def _one_of_three(name: str, part: str, order: Order) -> Recipe:
    """Part q, k or v of rows that are all queries, then all keys, then all values.

    Of vectors, each row is the filter of the convolution.
    """

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        delta = _delta(spec, tensor)
        times = delta.width if tensor.vector else 1
        keys, values = delta.key_heads * delta.key_size, delta.heads * delta.value_size

        def rows() -> Indices:
            if part == "v":
                return order(delta, delta.value_size * times) + 2 * keys * times
            return np.arange(keys * times) + (keys * times if part == "k" else 0)

        return _rows(name, rows, (2 * keys + values) * times, tensor, files)

    return recipe


def _of_heads(name: str, order: Order, elements: bool = False) -> Recipe:
    """Rows of value heads: one of each head, or one of each of its elements."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        delta = _delta(spec, tensor)
        each = delta.value_size if elements else 1
        return _rows(name, partial(order, delta, each), delta.heads * each, tensor, files)

    return recipe


def _turned_output(name: str) -> Recipe:
    """Columns of value heads that are stored in one tile."""

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        delta = _delta(spec, tensor)
        stored = find(files, spec, tensor, name)
        # Value heads of a tile stay together, and so do their columns' blocks.
        heads = _turned_heads(delta).reshape(-1, delta.tile)
        return PickedColumns(stored, heads[:, 0] // delta.tile, delta.tile * delta.value_size)

    return recipe


_LAYER = "model.layers.{layer}."
_MIXER = _LAYER + "linear_attn."
_EXPERTS = _LAYER + "mlp.experts."
_SHARED = _LAYER + "mlp.shared_expert."


def _name(table: Names, part: str) -> str:
    name = table[part]
    assert isinstance(name, str)
    return name


_SAME: Names = {
    **TENSORS,
    **{
        part: one_more(_name(TENSORS, part))
        for part in ("norm", "attn_norm", "ffn_norm", "q_norm", "k_norm")
    },
    "w1": _by_experts(_SHARED + "gate_proj.weight", TENSORS["w1"]),
    "w2": _by_experts(_SHARED + "down_proj.weight", TENSORS["w2"]),
    "w3": _by_experts(_SHARED + "up_proj.weight", TENSORS["w3"]),
    "ffn_gate": _LAYER + "mlp.shared_expert_gate.weight",
    "experts_w1": fused_experts(_EXPERTS + "gate_up_proj", 0, _name(TENSORS, "experts_w1")),
    "experts_w3": fused_experts(_EXPERTS + "gate_up_proj", 1, _name(TENSORS, "experts_w3")),
    "experts_w2": where(
        _EXPERTS + "down_proj", _EXPERTS + "down_proj", _name(TENSORS, "experts_w2")
    ),
    "decay_rate": computed(_MIXER + "A_log", "minus exp", lambda values: -np.exp(values)),
    "decay_bias": _MIXER + "dt_bias",
    "conv_q": _one_of_three(_MIXER + "conv1d.weight", "q", _grouped),
    "conv_k": _one_of_three(_MIXER + "conv1d.weight", "k", _grouped),
    "conv_v": _one_of_three(_MIXER + "conv1d.weight", "v", _grouped),
    "mixed_norm": _MIXER + "norm.weight",
    "wo": _by_mixer(_MIXER + "out_proj.weight", TENSORS["wo"]),
    "bq": _query(_name(TENSORS, "bq"), gate=False),
    "bg": _query(_name(TENSORS, "bq"), gate=True),
}
_Q_PROJ, _QKV, _QKVZ = _name(TENSORS, "wq"), "in_proj_qkv.weight", "in_proj_qkvz.weight"
_NEXT: Names = {
    **_SAME,
    "wq": _by_mixer(_joint(_MIXER + _QKVZ, "q"), _query(_Q_PROJ, gate=False)),
    "wk": _by_mixer(_joint(_MIXER + _QKVZ, "k"), TENSORS["wk"]),
    "wv": _by_mixer(_joint(_MIXER + _QKVZ, "v"), TENSORS["wv"]),
    "wg": _by_mixer(_joint(_MIXER + _QKVZ, "g"), _query(_Q_PROJ, gate=True)),
    "wa": _joint_heads(_MIXER + "in_proj_ba.weight", "a"),
    "wb": _joint_heads(_MIXER + "in_proj_ba.weight", "b"),
}
_QWEN35: Names = {
    **_SAME,
    "wq": _by_mixer(_one_of_three(_MIXER + _QKV, "q", _grouped), _query(_Q_PROJ, gate=False)),
    "wk": _by_mixer(_one_of_three(_MIXER + _QKV, "k", _grouped), TENSORS["wk"]),
    "wv": _by_mixer(_one_of_three(_MIXER + _QKV, "v", _grouped), TENSORS["wv"]),
    "wg": _by_mixer(_MIXER + "in_proj_z.weight", _query(_Q_PROJ, gate=True)),
    "wa": _MIXER + "in_proj_a.weight",
    "wb": _MIXER + "in_proj_b.weight",
}

_BLOCK = "blk.{layer}."


def _gguf_names(order: Order) -> dict[str, Recipe]:
    """Names of llama.cpp; order: of the value heads."""
    query = _BLOCK + "attn_q.weight"
    qkv, conv, output = "attn_qkv.weight", "ssm_conv1d.weight", _BLOCK + "ssm_out.weight"
    return {
        **GGUF_TENSORS,
        **{
            part: _by_experts(GGUF_SHARED_EXPERT[part], GGUF_TENSORS[part])
            for part in ("w1", "w2", "w3")
        },
        "ffn_gate": GGUF_SHARED_EXPERT["ffn_gate"],
        "ffn_norm": _BLOCK + "post_attention_norm.weight",
        "wq": _by_mixer(_one_of_three(_BLOCK + qkv, "q", order), _query(query, gate=False)),
        "wk": _by_mixer(_one_of_three(_BLOCK + qkv, "k", order), GGUF_TENSORS["wk"]),
        "wv": _by_mixer(_one_of_three(_BLOCK + qkv, "v", order), GGUF_TENSORS["wv"]),
        "wg": _by_mixer(
            _of_heads(_BLOCK + "attn_gate.weight", order, elements=True), _query(query, gate=True)
        ),
        "wa": _of_heads(_BLOCK + "ssm_alpha.weight", order),
        "wb": _of_heads(_BLOCK + "ssm_beta.weight", order),
        "decay_rate": _of_heads(_BLOCK + "ssm_a", order),
        "decay_bias": _of_heads(_BLOCK + "ssm_dt.bias", order),
        "conv_q": _one_of_three(_BLOCK + conv, "q", order),
        "conv_k": _one_of_three(_BLOCK + conv, "k", order),
        "conv_v": _one_of_three(_BLOCK + conv, "v", order),
        "mixed_norm": _BLOCK + "ssm_norm.weight",
        "wo": _by_mixer(
            output if order is _grouped else _turned_output(output), GGUF_TENSORS["wo"]
        ),
    }


_SSM_IN = _BLOCK + "ssm_in.weight"
# Files of the first weeks hold the products as transformers does.
_GGUF_NEXT = {
    **_gguf_names(_grouped),
    **{
        part: where(_SSM_IN, _joint(_SSM_IN, part[1]), recipe)
        for part, recipe in _gguf_names(_grouped).items()
        if part in ("wq", "wk", "wv", "wg")
    },
    "wa": _joint_heads(_BLOCK + "ssm_ba.weight", "a"),
    "wb": _joint_heads(_BLOCK + "ssm_ba.weight", "b"),
}
# Layers that guess further tokens, and the part that reads images.
_UNUSED = ("mtp.", "model.visual.", "visual.")


def _family(
    name: str,
    model_types: tuple[str, ...],
    classes: tuple[str, ...],
    architecture: str,
    tensors: Names,
) -> Family:
    return Family(
        name=name,
        model_types=model_types,
        classes=classes,
        reads=("layer_types", "partial_rotary_factor"),
        config=lambda config, model_name: _config(config, model_name, architecture),
        tensors=tensors,
        unused=_UNUSED,
        architectures=(architecture,),
        gguf=lambda metadata, model_name, facts: _gguf(metadata, model_name, facts, architecture),
        gguf_tensors=_GGUF_NEXT if architecture == "qwen3next" else _gguf_names(_turned),
    )


FAMILIES = (
    _family("Qwen3-Next", ("qwen3_next",), ("Qwen3NextForCausalLM",), "qwen3next", _NEXT),
    _family(
        "Qwen3.5",
        ("qwen3_5", "qwen3_5_text"),
        ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
        "qwen35",
        _QWEN35,
    ),
    _family(
        "Qwen3.5 MoE",
        ("qwen3_5_moe", "qwen3_5_moe_text"),
        ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
        "qwen35moe",
        _QWEN35,
    ),
)
