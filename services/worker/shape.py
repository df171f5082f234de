"""The shape of a shard: checks of a ShardConfig, its sizes, and the same for the core.

Every number of a ShardConfig is checked against a limit before anything of its size is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hearth import _native
from hearth.common.channels import MAX_PAYLOAD_BYTES
from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import format_size
from hearth.common.types import ACTIVATION, BLOCK, KV, NORM, ROUTER, Number, name_of
from hearth.v1 import common_pb2

# Well above every known model (the widest: hidden 16,384, 126 layers, feed-forward 53,248,
# vocabulary 256,000), and small enough that no product of them overflows 64 bits.
LIMITS = {
    "hidden_size": 1 << 16,
    "key_size": 1 << 10,
    "value_size": 1 << 10,
    "page_size": 1 << 12,
    "max_pages": 1 << 24,
    "max_step_tokens": 1 << 16,
    "vocab_size": 1 << 21,
    "layers": 1 << 12,
    "heads": 1 << 12,
    "kv_heads": 1 << 12,
    "units": 1 << 20,
    "units of an expert": 1 << 20,
    "experts": 1 << 12,
    "vocab": 1 << 21,
    "learned_positions": 1 << 24,
    "window": 1 << 31,
    "query_rank": 1 << 16,
    "kv_rank": 3 << 10,
    "nope_size": 1 << 10,
    "rope_size": 1 << 10,
    "key_heads": 1 << 12,
    "group": 1 << 12,
    "tile": 1 << 12,
    "width": 1 << 8,
    "max_sequences": 1 << 16,
    "max_undo": _native.MOST_UNDO,
    "layer_inputs.size": 1 << 14,
    "layer_inputs.layers": 1 << 12,
}
# Elements of all value heads of a gated delta rule.
MAX_VALUES = 1 << 22
# Elements of all layers' own inputs.
MAX_INPUTS = 1 << 18
MAX_KINDS = 64
MAX_ROPES = 16
_MAX_POSITIONS = 1 << 31
# Limit of a step's intermediate values: 1,024 rows of the widest known model take 0.8 GiB.
_MAX_STEP_BYTES = 1 << 30
# Minimum size of a page of KV cache: each page is a memory mapping of its own.
_MAPPING_BYTES = 4096


def check_config(config: common_pb2.ShardConfig) -> None:
    """Raises HearthError BAD_SHARD naming the first invalid number of `config`."""
    for name in ("hidden_size", "page_size", "max_pages", "max_step_tokens", "vocab_size"):
        _in_range(name, getattr(config, name), 1)
    _in_range("learned_positions", config.learned_positions, 0)
    _in_range("max_sequences", config.max_sequences, 0)
    _in_range("max_undo", config.max_undo, 0)
    _range_in_range("layers", config.layers, 1)
    _range_in_range("vocab", config.vocab, 0)
    if not (math.isfinite(config.norm_epsilon) and 0 <= config.norm_epsilon <= 1):
        raise _bad(f"norm_epsilon {config.norm_epsilon} is not within [0, 1]")
    if name_of(NORM, config.norm) is None:
        raise _bad(f"unknown norm {config.norm}")
    if name_of(KV, config.kv_type) is None:
        raise _bad(f"unknown kv_type {config.kv_type}")
    _positive("embedding_scale", config.embedding_scale)
    _positive("logit_scale", config.logit_scale)
    _check_ropes(config)
    _check_kinds(config)
    _check_kv_layers(config)
    if config.HasField("layer_inputs"):
        _check_layer_inputs(config)
    if config.max_pages * config.page_size > _MAX_POSITIONS:
        raise _bad(f"{config.max_pages} pages of {config.page_size} are too many positions")
    if config.head_from_embedding and not (config.embedding and _size(config.vocab)):
        raise _bad("head_from_embedding needs an embedding and vocabulary rows on this node")
    if config.head_from_embedding and config.vocab.end > config.vocab_size:
        raise _bad(
            f"vocabulary rows end at {config.vocab.end}, the embedding at {config.vocab_size}"
        )
    widest = max(row_size(config), sync_size(config))
    payload = config.max_step_tokens * widest * 4
    if payload > MAX_PAYLOAD_BYTES:
        raise _bad(
            f"a step of {config.max_step_tokens} tokens x {widest} is "
            f"{format_size(payload)}, more than a message's {format_size(MAX_PAYLOAD_BYTES)}: "
            f"use at most {MAX_PAYLOAD_BYTES // 4 // widest} tokens a step"
        )
    step = step_bytes(config)
    if step > _MAX_STEP_BYTES:
        raise _bad(
            f"a step of {config.max_step_tokens} tokens needs {format_size(step)} of workspace, "
            f"more than {format_size(_MAX_STEP_BYTES)}: use fewer tokens a step"
        )


def _check_ropes(config: common_pb2.ShardConfig) -> None:
    if len(config.ropes) > MAX_ROPES:
        raise _bad(f"{len(config.ropes)} ropes are more than {MAX_ROPES}")
    for rope in config.ropes:
        _positive("the magnitude of a rope", rope.magnitude)
        if not rope.frequencies or not all(math.isfinite(value) for value in rope.frequencies):
            raise _bad("a rope has no frequencies, or one that is not finite")


def _check_kinds(config: common_pb2.ShardConfig) -> None:
    if not 1 <= len(config.kinds) <= MAX_KINDS:
        raise _bad(f"{len(config.kinds)} kinds of blocks are not 1 to {MAX_KINDS}")
    layers = _size(config.layers)
    if len(config.kind_of_layer) != layers:
        raise _bad(f"kind_of_layer has {len(config.kind_of_layer)} entries for {layers} layers")
    if max(config.kind_of_layer) >= len(config.kinds):
        raise _bad(f"a layer is of kind {max(config.kind_of_layer)}, of {len(config.kinds)}")
    for block in config.kinds:
        has_feed_forward, has_experts = block.HasField("feed_forward"), block.HasField("experts")
        mixer = block.WhichOneof("mixer")
        if mixer is None or not (has_feed_forward or has_experts):
            raise _bad("a kind of block has no mixer or no feed-forward that this version knows")
        if mixer == "attention":
            _check_attention(config, block.attention)
        elif mixer == "latent_attention":
            _check_latent_attention(config, block.latent_attention)
        else:
            _check_gated_delta(block.gated_delta)
        if has_feed_forward:
            _check_feed_forward("units", block.feed_forward)
        if has_experts:
            _check_experts(block.experts)
        if block.feed_forward_gate and not (has_feed_forward and has_experts):
            raise _bad("a gate of the feed-forward needs a feed-forward with experts beside it")
        _positive("residual_scale", block.residual_scale)
        if block.separate_norms and (
            not (has_feed_forward and has_experts) or block.feed_forward_gate
        ):
            raise _bad("separate norms need a feed-forward without a gate, and experts beside it")


def row_size(config: common_pb2.ShardConfig) -> int:
    """Elements of a row of activations: the residual stream, then all layers' own inputs."""
    return config.hidden_size + config.layer_inputs.layers * config.layer_inputs.size


def sync_size(config: common_pb2.ShardConfig) -> int:
    """Elements of a row of the widest sync."""
    two_results = any(block.separate_norms for block in config.kinds)
    return config.hidden_size * (2 if two_results else 1)


def _check_layer_inputs(config: common_pb2.ShardConfig) -> None:
    inputs = config.layer_inputs
    _in_range("layer_inputs.size", inputs.size, 1)
    _in_range("layer_inputs.layers", inputs.layers, config.layers.end)
    if inputs.size * inputs.layers > MAX_INPUTS:
        raise _bad(f"inputs of {inputs.size} x {inputs.layers} layers exceed {MAX_INPUTS} elements")
    if name_of(ACTIVATION, inputs.activation) is None:
        raise _bad(f"unknown activation {inputs.activation}")
    for name in ("embedding_scale", "projection_scale", "sum_scale"):
        _positive(f"layer_inputs.{name}", getattr(inputs, name))


def _check_kv_layers(config: common_pb2.ShardConfig) -> None:
    first = config.layers.begin
    for layer, kind in enumerate(config.kind_of_layer, start=first):
        own = config.kinds[kind].attention
        if not own.HasField("kv_layer"):
            continue
        what = f"layer {layer} reads the keys of layer {own.kv_layer}"
        if not first <= own.kv_layer < layer:
            raise _bad(f"{what}, which is not an earlier one of this stage")
        block = config.kinds[config.kind_of_layer[own.kv_layer - first]]
        other = block.attention
        if not block.HasField("attention") or other.HasField("kv_layer"):
            raise _bad(f"{what}, which has none of its own")
        if own.HasField("row_norm"):
            raise _bad(f"{what}, with a norm of whole rows")
        if (_pair(own.kv_heads), own.key_size, own.value_size) != (
            _pair(other.kv_heads),
            other.key_size,
            other.value_size,
        ):
            raise _bad(f"{what}, which has other KV heads")


def _check_feed_forward(name: str, feed_forward: common_pb2.FeedForward) -> None:
    """name: of its units."""
    _range_in_range(name, feed_forward.units, 1)
    if name_of(ACTIVATION, feed_forward.activation) is None:
        raise _bad(f"unknown activation {feed_forward.activation}")
    if not feed_forward.HasField("clamp"):
        return
    if not feed_forward.gated:
        raise _bad("a feed-forward has limits of a gate, and no gate")
    _positive("the limit of a feed-forward", feed_forward.clamp.limit)
    _positive("the factor of a feed-forward's gate", feed_forward.clamp.factor)
    _not_negative("the offset of a feed-forward", feed_forward.clamp.offset)


def _check_experts(experts: common_pb2.Experts) -> None:
    _in_range("experts", experts.count, 1)
    _check_feed_forward("units of an expert", experts.expert)
    if name_of(ROUTER, experts.scores) is None:
        raise _bad(f"unknown scores {experts.scores} of a router")
    _positive("the scale of experts", experts.scale)
    groups, used_groups = experts.groups, experts.used_groups
    if not (1 <= used_groups <= groups <= experts.count) or experts.count % groups:
        raise _bad(f"{used_groups} of {groups} groups of {experts.count} experts")
    if not 1 <= experts.used <= experts.count // groups * used_groups:
        raise _bad(
            f"{experts.used} of {experts.count} experts, in {used_groups} of {groups} groups"
        )


def _check_attention(config: common_pb2.ShardConfig, attention: common_pb2.Attention) -> None:
    for name in ("heads", "kv_heads"):
        _range_in_range(name, getattr(attention, name), 1)
    for name in ("key_size", "value_size"):
        value = getattr(attention, name)
        _in_range(name, value, 1)
        if config.kv_type == KV["q80"] and value % BLOCK:
            raise _bad(f"kv_type q80 needs a {name} that divides by 32, not {value}")
    _in_range("window", attention.window, 0)
    heads, kv_heads = _size(attention.heads), _size(attention.kv_heads)
    if heads % kv_heads:
        raise _bad(f"{heads} heads do not divide over {kv_heads} KV heads")
    _positive("the scale of attention", attention.scale)
    if attention.keys_as_values and attention.key_size != attention.value_size:
        raise _bad(
            f"keys of {attention.key_size} elements cannot be values of {attention.value_size}"
        )
    if attention.HasField("row_norm"):
        _check_row_norm(attention)
    if attention.HasField("temperature"):
        _not_negative("the slope of queries' growth", attention.temperature.slope)
        _positive("the length of queries' growth", attention.temperature.length)
    if attention.HasField("rope"):
        _check_rope(config, attention.rope, "key_size", attention.key_size)


def _check_row_norm(attention: common_pb2.Attention) -> None:
    norm = attention.row_norm
    if attention.head_norm:
        raise _bad("attention has a norm of each head and one of whole rows")
    for name, part, whole in (
        ("heads", attention.heads, norm.heads),
        ("kv_heads", attention.kv_heads, norm.kv_heads),
    ):
        _in_range(name, whole, 1)
        if part.end > whole:
            raise _bad(f"{name} end at {part.end}, of {whole}")
    if norm.heads % norm.kv_heads:
        raise _bad(f"{norm.heads} heads do not divide over {norm.kv_heads} KV heads")


def _check_latent_attention(
    config: common_pb2.ShardConfig, attention: common_pb2.LatentAttention
) -> None:
    _range_in_range("heads", attention.heads, 1)
    _in_range("query_rank", attention.query_rank, 0)
    for name in ("kv_rank", "nope_size", "rope_size", "value_size"):
        _in_range(name, getattr(attention, name), 1)
    key_size = attention.kv_rank + attention.rope_size
    if config.kv_type == KV["q80"] and key_size % BLOCK:
        raise _bad(f"kv_type q80 needs a kv_rank and rope_size that divide by 32, not {key_size}")
    _positive("the scale of attention", attention.scale)
    if not (math.isfinite(attention.norm_epsilon) and 0 <= attention.norm_epsilon < 1):
        raise _bad(f"norm_epsilon {attention.norm_epsilon} is not within [0, 1)")
    if attention.HasField("rope"):
        _check_rope(config, attention.rope, "rope_size", attention.rope_size)


def _check_gated_delta(delta: common_pb2.GatedDelta) -> None:
    _range_in_range("key_heads", delta.key_heads, 1)
    for name in ("group", "tile", "key_size", "value_size", "width"):
        _in_range(name, getattr(delta, name), 1)
    if delta.key_heads.begin % delta.tile or delta.key_heads.end % delta.tile:
        raise _bad(
            f"key_heads [{delta.key_heads.begin}, {delta.key_heads.end}) are not whole tiles of "
            f"{delta.tile}"
        )
    values = _size(delta.key_heads) * delta.group * delta.value_size
    if values > MAX_VALUES:
        raise _bad(f"a gated delta rule of {values} values has more than {MAX_VALUES}")
    if name_of(ACTIVATION, delta.activation) is None:
        raise _bad(f"unknown activation {delta.activation}")


def _check_rope(config: common_pb2.ShardConfig, rope: int, name: str, head_size: int) -> None:
    """name: of the head's size."""
    if rope >= len(config.ropes):
        raise _bad(f"rope {rope} of {len(config.ropes)} ropes")
    pairs = len(config.ropes[rope].frequencies)
    if 2 * pairs > head_size:
        raise _bad(f"{pairs} rope frequencies, {name} {head_size} has room for fewer")


def native_config(config: common_pb2.ShardConfig) -> _native.ShardConfig:
    """The core's form of a checked config. ValueError for what the core refuses."""
    return _native.ShardConfig(
        hidden_size=config.hidden_size,
        layers=_pair(config.layers),
        kinds=[_native_block(block) for block in config.kinds],
        kind_of_layer=list(config.kind_of_layer),
        norm=_name(NORM, config.norm),
        norm_epsilon=config.norm_epsilon,
        ropes=[
            _native.RopeConfig(frequencies=list(rope.frequencies), magnitude=rope.magnitude)
            for rope in config.ropes
        ],
        kv_type=kv_name(config),
        page_size=config.page_size,
        max_pages=config.max_pages,
        max_step_tokens=config.max_step_tokens,
        max_sequences=most_sequences(config),
        max_undo=config.max_undo,
        embedding=config.embedding,
        vocab_size=config.vocab_size,
        embedding_scale=config.embedding_scale,
        learned_positions=config.learned_positions,
        vocab=_pair(config.vocab),
        head_from_embedding=config.head_from_embedding,
        head_bias=config.head_bias,
        logit_scale=config.logit_scale,
        logit_softcap=config.logit_softcap,
        layer_inputs=_native_layer_inputs(config.layer_inputs)
        if config.HasField("layer_inputs")
        else None,
    )


def _native_layer_inputs(inputs: common_pb2.LayerInputs) -> _native.LayerInputsConfig:
    return _native.LayerInputsConfig(
        size=inputs.size,
        layers=inputs.layers,
        activation=_name(ACTIVATION, inputs.activation),
        embedding_scale=inputs.embedding_scale,
        projection_scale=inputs.projection_scale,
        sum_scale=inputs.sum_scale,
    )


def _native_block(block: common_pb2.Block) -> _native.BlockConfig:
    return _native.BlockConfig(
        mixer=_native_mixer(block),
        feed_forward=_native_feed_forward(block.feed_forward),
        experts=_native_experts(block.experts) if block.HasField("experts") else None,
        feed_forward_gate=block.feed_forward_gate,
        input_norms=block.input_norms,
        output_norms=block.output_norms,
        residual_scale=block.residual_scale,
        separate_norms=block.separate_norms,
        layer_scale=block.layer_scale,
    )


def _native_mixer(
    block: common_pb2.Block,
) -> _native.AttentionConfig | _native.LatentAttentionConfig | _native.GatedDeltaConfig:
    if block.HasField("latent_attention"):
        return _native_latent_attention(block.latent_attention)
    if block.HasField("gated_delta"):
        return _native_gated_delta(block.gated_delta)
    return _native_attention(block.attention)


def _native_attention(attention: common_pb2.Attention) -> _native.AttentionConfig:
    return _native.AttentionConfig(
        heads=_pair(attention.heads),
        kv_heads=_pair(attention.kv_heads),
        key_size=attention.key_size,
        value_size=attention.value_size,
        scale=attention.scale,
        rope=attention.rope if attention.HasField("rope") else None,
        window=attention.window,
        softcap=attention.softcap,
        bias=attention.bias,
        output_bias=attention.output_bias,
        head_norm=attention.head_norm,
        sinks=attention.sinks,
        gate=attention.gate,
        row_norm=(attention.row_norm.heads, attention.row_norm.kv_heads)
        if attention.HasField("row_norm")
        else None,
        temperature=(attention.temperature.slope, attention.temperature.length)
        if attention.HasField("temperature")
        else None,
        value_norm=attention.value_norm,
        keys_as_values=attention.keys_as_values,
        kv_layer=attention.kv_layer if attention.HasField("kv_layer") else None,
    )


def _native_latent_attention(
    attention: common_pb2.LatentAttention,
) -> _native.LatentAttentionConfig:
    return _native.LatentAttentionConfig(
        heads=_pair(attention.heads),
        query_rank=attention.query_rank,
        kv_rank=attention.kv_rank,
        nope_size=attention.nope_size,
        rope_size=attention.rope_size,
        value_size=attention.value_size,
        scale=attention.scale,
        rope=attention.rope if attention.HasField("rope") else None,
        norm_epsilon=attention.norm_epsilon,
    )


def _native_gated_delta(delta: common_pb2.GatedDelta) -> _native.GatedDeltaConfig:
    return _native.GatedDeltaConfig(
        key_heads=_pair(delta.key_heads),
        group=delta.group,
        tile=delta.tile,
        key_size=delta.key_size,
        value_size=delta.value_size,
        width=delta.width,
        activation=_name(ACTIVATION, delta.activation),
    )


def _native_feed_forward(feed_forward: common_pb2.FeedForward) -> _native.FeedForwardConfig:
    """The core's form; an absent one has no units."""
    return _native.FeedForwardConfig(
        units=_pair(feed_forward.units),
        activation=name_of(ACTIVATION, feed_forward.activation) or "silu",
        gated=feed_forward.gated,
        bias=feed_forward.bias,
        output_bias=feed_forward.output_bias,
        clamp=_native.GateClamp(
            limit=feed_forward.clamp.limit,
            factor=feed_forward.clamp.factor,
            offset=feed_forward.clamp.offset,
        )
        if feed_forward.HasField("clamp")
        else None,
    )


def _native_experts(experts: common_pb2.Experts) -> _native.ExpertsConfig:
    return _native.ExpertsConfig(
        count=experts.count,
        used=experts.used,
        expert=_native_feed_forward(experts.expert),
        scores=_name(ROUTER, experts.scores),
        normalize=experts.normalize,
        scale=experts.scale,
        router_bias=experts.router_bias,
        choice_bias=experts.choice_bias,
        groups=experts.groups,
        used_groups=experts.used_groups,
        expert_scales=experts.expert_scales,
    )


def kv_page_bytes(config: common_pb2.ShardConfig) -> int:
    """Bytes of one page of KV cache: K and V of every layer and KV head held."""
    total = 0
    for kind in config.kind_of_layer:
        block = config.kinds[kind]
        if block.HasField("latent_attention"):
            latent = block.latent_attention
            heads, sizes = 1, (latent.kv_rank + latent.rope_size, 0)
        else:
            attention = block.attention
            heads, sizes = _size(attention.kv_heads), (attention.key_size, attention.value_size)
            if attention.HasField("kv_layer"):
                continue
        total += heads * _native.kv_head_bytes(kv_name(config), *sizes, config.page_size)
    return total


def kv_bytes(config: common_pb2.ShardConfig) -> int:
    """Bytes of KV cache when all pages are in use."""
    return max(kv_page_bytes(config), _MAPPING_BYTES) * config.max_pages


def most_sequences(config: common_pb2.ShardConfig) -> int:
    """Maximum number of sequences with a page table, and so with a state."""
    return config.max_sequences or config.max_step_tokens


def state_bytes(config: common_pb2.ShardConfig) -> int:
    """Bytes of all sequences' states in recurrent mixers."""
    total = 0
    for kind in config.kind_of_layer:
        delta = config.kinds[kind].gated_delta
        if delta.width:
            total += _size(delta.key_heads) * _native.gated_delta_bytes(
                delta.group, delta.key_size, delta.value_size, delta.width, config.max_undo
            )
    return total * most_sequences(config)


def step_bytes(config: common_pb2.ShardConfig) -> int:
    """Upper bound in bytes of a step's intermediate values: the core's workspace."""
    hidden = config.hidden_size
    queries = keys = mixed = gates = units = inputs = inners = router = 0
    latents = latent_codes = 0
    for block in config.kinds:
        latent = block.latent_attention
        heads, key_size = _size(latent.heads), latent.kv_rank + latent.rope_size
        queries = max(queries, heads * key_size)
        mixed = max(mixed, heads * latent.kv_rank)
        keys = max(keys, key_size)
        whole = latent.nope_size + latent.rope_size
        inputs_of_head = latent.nope_size + latent.value_size
        latents = max(latents, heads * (whole + inputs_of_head) + latent.query_rank)
        latent_codes = max(latent_codes, heads * inputs_of_head + latent.query_rank)
        delta = block.gated_delta
        values = _size(delta.key_heads) * delta.group * delta.value_size
        queries = max(queries, _size(delta.key_heads) * delta.key_size)
        keys = max(keys, _size(delta.key_heads) * delta.key_size + values)
        mixed = max(mixed, values)
        # With the products of decay and beta.
        gates = max(gates, values + 2 * _size(delta.key_heads) * delta.group)
        attention = block.attention
        heads, kv_heads = _size(attention.heads), _size(attention.kv_heads)
        queries = max(queries, heads * attention.key_size)
        mixed = max(mixed, heads * attention.value_size)
        keys = max(keys, kv_heads * (attention.key_size + attention.value_size))
        gates = max(gates, heads * attention.value_size if attention.gate else 0)
        units = max(units, _size(block.feed_forward.units))
        chosen, inner = 0, 0
        if block.HasField("experts"):
            chosen, inner = block.experts.used, _size(block.experts.expert.units)
            router = max(router, 2 * block.experts.count + 2 * chosen)
        inputs = max(inputs, chosen * hidden)
        inners = max(inners, chosen * inner)
    angles = 2 * sum(len(rope.frequencies) for rope in config.ropes)
    # int8, with a scale and a sum for each block
    quantized = max(hidden, mixed) + latent_codes + units + inputs + inners
    # Attention and feed-forward take turns. Experts have rows of their own, and outputs.
    sums = 2 * any(block.attention.HasField("row_norm") for block in config.kinds)
    mixers = queries + keys + mixed + gates + latents + sums
    floats = 2 * hidden + max(mixers, 2 * units) + angles
    floats += 2 * inputs + 2 * inners + router
    floats += sync_size(config) - hidden
    if config.HasField("layer_inputs"):
        # A copy of the residual stream, the projection, and a layer's gate.
        floats += hidden + (row_size(config) - hidden) + config.layer_inputs.size
        quantized += config.layer_inputs.size
    return config.max_step_tokens * (4 * floats + quantized + quantized // 4)


def kv_name(config: common_pb2.ShardConfig) -> str:
    """ "f32", "f16" or "q80", already validated by check_config."""
    return _name(KV, config.kv_type)


def _name(table: Mapping[str, Number], number: int) -> str:
    name = name_of(table, number)
    assert name is not None
    return name


def _pair(value: common_pb2.Range) -> tuple[int, int]:
    return value.begin, value.end


def _size(value: common_pb2.Range) -> int:
    return value.end - value.begin


def _range_in_range(name: str, value: common_pb2.Range, least: int) -> None:
    if value.end < value.begin + least:
        raise _bad(f"{name} [{value.begin}, {value.end}) is empty")
    _in_range(name, value.end, 0)


def _in_range(name: str, value: int, least: int) -> None:
    if not least <= value <= LIMITS[name]:
        raise _bad(f"{name} {value} is not within [{least}, {LIMITS[name]}]")


def _not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise _bad(f"{name} is {value}; it must be a finite number of at least 0")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise _bad(f"{name} is {value}; it must be a finite number above 0")


def _bad(problem: str) -> HearthError:
    return HearthError(Reason.BAD_SHARD, problem)
