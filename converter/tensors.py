"""The table of a model's tensors: names, shapes, and how each is cut over the ranks of a stage.

Planner, manifest and shard follow this one table. Matrices compute y = W x and are named by what
they make: wq, wk, wv, wo of attention, w1 (gate), w3 (up), w2 (down) of the feed-forward. Vectors
have one row and are f32 on every node.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from hearth.converter.blocks import (
    Attends,
    AttentionSpec,
    BlockSpec,
    ExpertsSpec,
    FeedForwardSpec,
    GatedDeltaSpec,
    LatentAttentionSpec,
    Mixer,
)

if TYPE_CHECKING:
    from hearth.converter.spec import ModelSpec


class UnitKind(Enum):
    """Kinds of parts that the ranks of a stage divide among themselves."""

    # A query head, and a KV head with those that read it.
    HEAD = "query heads"
    KV_HEAD = "KV heads"
    # Key heads of a gated delta rule whose value heads lie by turns, with these.
    KEY_HEADS = "groups of key heads"
    # One number of a feed-forward's inner width, and of that of every expert of a layer.
    FFN = "feed-forward columns"
    EXPERT = "columns of each expert"
    # One token of the vocabulary.
    VOCAB = "vocabulary rows"


@dataclass(frozen=True, slots=True)
class Unit:
    """A part that is never cut, of which there are `count` in all.

    beside: of a query head, the number of KV heads; of a KV head, that of query heads. They are
    divided together.
    """

    kind: UnitKind
    count: int
    beside: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor's cut: each `unit` is `size` neighbouring rows, or columns, of it."""

    unit: Unit
    size: int = 1
    columns: bool = False


class Place(Enum):
    """The part of a forward pass that uses a tensor."""

    INPUT = "before the first layer"
    # On all ranks of the first stage.
    START = "with the first layer"
    LAYER = "in a layer"
    OUTPUT = "after the last layer"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that a forward pass uses."""

    name: str
    # (rows, columns)
    shape: tuple[int, int]
    place: Place
    # None: a node that uses the tensor has it whole.
    cut: Cut | None = None
    vector: bool = False
    # Kept in f32 whatever type is asked for: a router must choose the same on all nodes.
    exact: bool = False
    # Equal parts, one below the other (of a vector: one behind the other), each cut alike: experts.
    parts: int = 1
    # Only the first rank of a stage has it: the bias of a sum over ranks.
    first_rank: bool = False
    # Its layer's number, where it is a layer's.
    layer: int = -1
    # The tensor of the model's files that it is read from, where that has another name: the head of
    # a tied model is its embedding.
    stored_as: str = ""

    @property
    def source(self) -> str:
        """The name in the model's files."""
        return self.stored_as or self.name

    @property
    def part(self) -> str:
        """The name within a layer: "wq" of "layers.3.wq"."""
        return self.name.removeprefix(f"layers.{self.layer}.")


def head_units(attention: Attends) -> tuple[Unit, Unit]:
    """The query heads and the KV heads of an attention."""
    heads, kv_heads = attention.heads, attention.kv_heads
    return Unit(UnitKind.HEAD, heads, kv_heads), Unit(UnitKind.KV_HEAD, kv_heads, heads)


def ffn_unit(feed_forward: FeedForwardSpec) -> Unit:
    """The columns of a feed-forward's inner width."""
    return Unit(UnitKind.FFN, feed_forward.size)


def expert_unit(experts: ExpertsSpec) -> Unit:
    """The columns of the inner width of each expert."""
    return Unit(UnitKind.EXPERT, experts.expert.size)


def key_unit(delta: GatedDeltaSpec) -> Unit:
    """The key heads of a gated delta rule, by tiles."""
    return Unit(UnitKind.KEY_HEADS, delta.key_heads // delta.tile)


def mixer_units(mixer: Mixer) -> tuple[Unit, ...]:
    """The units that a mixer is divided by; the first has as many as there can be ranks."""
    return (key_unit(mixer),) if isinstance(mixer, GatedDeltaSpec) else head_units(mixer)


def inner_units(block: BlockSpec) -> tuple[Unit, ...]:
    """The units that what follows the mixer is divided by."""
    units = []
    if block.feed_forward is not None:
        units.append(ffn_unit(block.feed_forward))
    if block.experts is not None:
        units.append(expert_unit(block.experts))
    return tuple(units)


def vocab_unit(spec: "ModelSpec") -> Unit:
    """The rows of the head."""
    return Unit(UnitKind.VOCAB, spec.vocab_size)


def model_tensors(spec: "ModelSpec", kind_of_layer: Iterable[int]) -> Iterator[TensorSpec]:
    """Every tensor of a forward pass through layers of these kinds, in its order."""
    hidden, vocab = spec.hidden_size, spec.vocab_size
    yield TensorSpec("embedding", (vocab, hidden), Place.INPUT)
    if spec.learned_positions:
        yield TensorSpec("positions", (spec.learned_positions, hidden), Place.INPUT)
    if spec.layer_inputs is not None:
        size = spec.layer_inputs.size
        width = spec.layers * size
        yield TensorSpec("layer_embedding", (vocab, width), Place.INPUT)
        yield TensorSpec("layer_projection", (width, hidden), Place.START)
        for norm in _norm(spec, "layer_projection_norm", size):
            yield replace(norm, place=Place.START)
    for layer, kind in enumerate(kind_of_layer):
        for tensor in block_tensors(spec, spec.kinds[kind]):
            yield replace(tensor, name=f"layers.{layer}.{tensor.name}", layer=layer)
    for norm in _norm(spec, "norm", hidden):
        yield replace(norm, place=Place.OUTPUT)
    head = TensorSpec("head", (vocab, hidden), Place.OUTPUT, Cut(vocab_unit(spec)))
    yield replace(head, stored_as="embedding") if spec.tied else head
    if spec.head_bias:
        cut = Cut(vocab_unit(spec), columns=True)
        yield TensorSpec("head_bias", (1, vocab), Place.OUTPUT, cut, vector=True)


def block_tensors(spec: "ModelSpec", block: BlockSpec) -> Iterator[TensorSpec]:
    """The tensors of a block, in the order of a forward pass, named as within a layer."""
    hidden = spec.hidden_size
    if block.input_norms:
        yield from _norm(spec, "attn_norm", hidden)
    yield from _mixer(block.mixer, hidden)
    if block.output_norms:
        yield from _norm(spec, "attn_out_norm", hidden)
    if block.input_norms:
        yield from _norm(spec, "ffn_norm", hidden)
    if block.feed_forward is not None:
        yield from _feed_forward(block.feed_forward, hidden)
    if block.experts is not None:
        yield from _experts(block.experts, hidden)
    if block.feed_forward_gate:
        yield TensorSpec("ffn_gate", (1, hidden), Place.LAYER, exact=True)
    if block.separate_norms:
        yield _vector("router_norm", hidden)
        for name in ("experts_norm", "ffn_result_norm", "experts_result_norm"):
            yield from _norm(spec, name, hidden)
    if block.output_norms:
        yield from _norm(spec, "ffn_out_norm", hidden)
    if spec.layer_inputs is not None:
        size = spec.layer_inputs.size
        yield TensorSpec("layer_gate", (size, hidden), Place.LAYER)
        yield TensorSpec("layer_out", (hidden, size), Place.LAYER)
        yield from _norm(spec, "layer_out_norm", hidden)
    if block.layer_scale:
        yield _vector("layer_scale", 1)


def _mixer(mixer: Mixer, hidden: int) -> Iterator[TensorSpec]:
    if isinstance(mixer, LatentAttentionSpec):
        return _latent_attention(mixer, hidden)
    if isinstance(mixer, GatedDeltaSpec):
        return _gated_delta(mixer, hidden)
    return _attention(mixer, hidden)


def _attention(attention: AttentionSpec, hidden: int) -> Iterator[TensorSpec]:
    head, kv_head = head_units(attention)
    key, value = attention.key_size, attention.value_size
    queries, keys = attention.heads * key, attention.kv_heads * key
    values, mixed = attention.kv_heads * value, attention.heads * value
    yield _matrix("wq", queries, hidden, Cut(head, key))
    has_keys = attention.kv_layer is None
    has_values = has_keys and not attention.keys_as_values
    if has_keys:
        yield _matrix("wk", keys, hidden, Cut(kv_head, key))
    if has_values:
        yield _matrix("wv", values, hidden, Cut(kv_head, value))
    if attention.bias:
        yield _vector("bq", queries, Cut(head, key, columns=True))
        if has_keys:
            yield _vector("bk", keys, Cut(kv_head, key, columns=True))
        if has_values:
            yield _vector("bv", values, Cut(kv_head, value, columns=True))
        if attention.gate:
            yield _vector("bg", mixed, Cut(head, value, columns=True))
    if attention.head_norm:
        yield _vector("q_norm", key)
        if has_keys:
            yield _vector("k_norm", key)
    if attention.row_norm:
        yield _vector("q_norm", queries, Cut(head, key, columns=True))
        yield _vector("k_norm", keys, Cut(kv_head, key, columns=True))
    if attention.sinks:
        yield _vector("sinks", attention.heads, Cut(head, columns=True))
    if attention.gate:
        yield _matrix("wg", mixed, hidden, Cut(head, value))
    yield _matrix("wo", hidden, mixed, Cut(head, value, columns=True))
    if attention.output_bias:
        yield replace(_vector("bo", hidden), first_rank=True)


def _latent_attention(attention: LatentAttentionSpec, hidden: int) -> Iterator[TensorSpec]:
    """Every rank has the latents' tensors whole, and those of its heads.

    wk_b makes a query from a head's part that is not rotated: [heads * kv_rank, nope_size].
    """
    head, _ = head_units(attention)
    heads, query, value = attention.heads, attention.query_size, attention.value_size
    rank, latent = attention.query_rank, attention.kv_rank
    if rank:
        yield TensorSpec("wq_a", (rank, hidden), Place.LAYER)
        yield _vector("q_a_norm", rank)
    yield _matrix("wq", heads * query, rank or hidden, Cut(head, query))
    yield TensorSpec("wkv_a", (latent + attention.rope_size, hidden), Place.LAYER)
    yield _vector("kv_a_norm", latent)
    yield _matrix("wk_b", heads * latent, attention.nope_size, Cut(head, latent))
    yield _matrix("wv_b", heads * value, latent, Cut(head, value))
    yield _matrix("wo", hidden, heads * value, Cut(head, value, columns=True))


def _gated_delta(delta: GatedDeltaSpec, hidden: int) -> Iterator[TensorSpec]:
    """Value heads follow their key head; the convolution's filters are cut with them.

    conv_q, conv_k, conv_v: the filter of each element of queries, keys and values, oldest position
    first. wa and wb are exact: they decide how long a state lasts, which few bits would change.
    """
    unit, heads, width = key_unit(delta), delta.heads, delta.width
    keys, values = delta.key_heads * delta.key_size, heads * delta.value_size
    # Rows of each unit.
    of_heads = delta.tile * delta.group
    of_keys, of_values = delta.tile * delta.key_size, of_heads * delta.value_size
    yield _matrix("wq", keys, hidden, Cut(unit, of_keys))
    yield _matrix("wk", keys, hidden, Cut(unit, of_keys))
    yield _matrix("wv", values, hidden, Cut(unit, of_values))
    yield _matrix("wg", values, hidden, Cut(unit, of_values))
    yield replace(_matrix("wa", heads, hidden, Cut(unit, of_heads)), exact=True)
    yield replace(_matrix("wb", heads, hidden, Cut(unit, of_heads)), exact=True)
    yield _vector("decay_rate", heads, Cut(unit, of_heads, columns=True))
    yield _vector("decay_bias", heads, Cut(unit, of_heads, columns=True))
    yield _vector("conv_q", keys * width, Cut(unit, of_keys * width, columns=True))
    yield _vector("conv_k", keys * width, Cut(unit, of_keys * width, columns=True))
    yield _vector("conv_v", values * width, Cut(unit, of_values * width, columns=True))
    yield _vector("mixed_norm", delta.value_size)
    yield _matrix("wo", hidden, values, Cut(unit, of_values, columns=True))


def _feed_forward(feed_forward: FeedForwardSpec, hidden: int) -> Iterator[TensorSpec]:
    unit, inner = ffn_unit(feed_forward), feed_forward.size
    gated = feed_forward.gated
    yield _matrix("w1", inner, hidden, Cut(unit))
    if gated:
        yield _matrix("w3", inner, hidden, Cut(unit))
    if feed_forward.bias:
        yield _vector("b1", inner, Cut(unit, columns=True))
        if gated:
            yield _vector("b3", inner, Cut(unit, columns=True))
    yield _matrix("w2", hidden, inner, Cut(unit, columns=True))
    if feed_forward.output_bias:
        yield replace(_vector("b2", hidden), first_rank=True)


def _experts(experts: ExpertsSpec, hidden: int) -> Iterator[TensorSpec]:
    unit, count, expert = expert_unit(experts), experts.count, experts.expert
    inner = expert.size
    yield TensorSpec("router", (count, hidden), Place.LAYER, exact=True)
    if experts.router_bias:
        yield _vector("router_bias", count)
    if experts.choice_bias:
        yield _vector("choice_bias", count)
    if experts.expert_scales:
        yield _vector("expert_scales", count)
    rows, columns = Cut(unit), Cut(unit, columns=True)
    parts = [_matrix("experts_w1", count * inner, hidden, rows)]
    if expert.gated:
        parts.append(_matrix("experts_w3", count * inner, hidden, rows))
    if expert.bias:
        parts.append(_vector("experts_b1", count * inner, columns))
        if expert.gated:
            parts.append(_vector("experts_b3", count * inner, columns))
    parts.append(_matrix("experts_w2", count * hidden, inner, columns))
    if expert.output_bias:
        parts.append(replace(_vector("experts_b2", count * hidden), first_rank=True))
    for part in parts:
        yield replace(part, parts=count)


def _norm(spec: "ModelSpec", name: str, size: int) -> Iterator[TensorSpec]:
    yield _vector(name, size)
    if spec.norm == "layer":
        yield _vector(f"{name}.bias", size)


def _matrix(name: str, rows: int, columns: int, cut: Cut) -> TensorSpec:
    return TensorSpec(name, (rows, columns), Place.LAYER, cut)


def _vector(name: str, size: int, cut: Cut | None = None) -> TensorSpec:
    return TensorSpec(name, (1, size), Place.LAYER, cut, vector=True)
