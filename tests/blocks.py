"""Models of a few blocks: their weights, their plain numpy definition, and the core's own results.

The definition shares nothing with the core: float64 throughout, no pages, no batches, one position
of one sequence after another.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hearth import _native
from hearth.root.planning.cut import divide, divide_heads

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Pair = tuple[F64, F64]
Span = tuple[int, int]
PAGE = 4
EPSILON = 1e-5


def native_clamp(clamp: tuple[float, float, float] | None) -> _native.GateClamp | None:
    if clamp is None:
        return None
    limit, factor, offset = clamp
    return _native.GateClamp(limit=limit, factor=factor, offset=offset)


@dataclass
class Experts:
    """Experts; the names are those of the core's config."""

    count: int = 8
    used: int = 3
    units: int = 16
    activation: str = "silu"
    bias: bool = False
    scores: str = "softmax"
    normalize: bool = True
    scale: float = 1.0
    router_bias: bool = False
    choice_bias: bool = False
    groups: int = 1
    used_groups: int = 1
    clamp: tuple[float, float, float] | None = None
    expert_scales: bool = False

    def native(self, units: Span, first: bool) -> _native.ExpertsConfig:
        return _native.ExpertsConfig(
            count=self.count,
            used=self.used,
            expert=_native.FeedForwardConfig(
                units=units,
                activation=self.activation,
                bias=self.bias,
                output_bias=self.bias and first,
                clamp=native_clamp(self.clamp),
            ),
            scores=self.scores,
            normalize=self.normalize,
            scale=self.scale,
            router_bias=self.router_bias,
            choice_bias=self.choice_bias,
            groups=self.groups,
            used_groups=self.used_groups,
            expert_scales=self.expert_scales,
        )


@dataclass(frozen=True)
class Part:
    """A rank's part of a kind of block. first: the rank adds the biases of sums over ranks."""

    heads: Span
    kv_heads: Span
    units: Span
    of_experts: Span
    first: bool


@dataclass
class Latent:
    """Latent attention; the names are those of the core's config."""

    query_rank: int = 0
    kv_rank: int = 20
    nope_size: int = 6
    rope_size: int = 8
    value_size: int = 10

    def native(self, block: Block, heads: Span) -> _native.LatentAttentionConfig:
        return _native.LatentAttentionConfig(
            heads=heads,
            query_rank=self.query_rank,
            kv_rank=self.kv_rank,
            nope_size=self.nope_size,
            rope_size=self.rope_size,
            value_size=self.value_size,
            scale=block.scale,
            rope=block.rope,
        )


@dataclass
class Block:
    """A kind of block; the names are those of the core's configs."""

    heads: int = 4
    kv_heads: int = 2
    key_size: int = 8
    value_size: int = 8
    rope: int | None = 0
    scale: float = 0.3
    window: int = 0
    softcap: float = 0.0
    bias: bool = False
    output_bias: bool = False
    head_norm: bool = False
    sinks: bool = False
    gate: bool = False
    row_norm: bool = False
    temperature: tuple[float, float] | None = None  # slope, length
    value_norm: bool = False
    keys_as_values: bool = False
    kv_layer: int | None = None
    latent: Latent | None = None  # with the heads, scale and rope above
    units: int = 40
    clamp: tuple[float, float, float] | None = None  # limit, factor, offset
    activation: str = "silu"
    gated: bool = True
    ffn_bias: bool = False
    ffn_output_bias: bool = False
    input_norms: bool = True
    output_norms: bool = False
    residual_scale: float = 1.0
    experts: Experts | None = None
    ffn_gate: bool = False
    separate_norms: bool = False
    layer_scale: bool = False

    def parts(self, shares: Sequence[float]) -> list[Part]:
        """The block cut over ranks, in proportion to `shares`."""
        kv_heads = 1 if self.latent is not None else self.kv_heads
        heads, kv = divide_heads(self.heads, kv_heads, shares)
        units = divide(self.units, shares) if self.units else [(0, 0)] * len(shares)
        of_experts = (
            divide(self.experts.units, shares)
            if self.experts is not None
            else [(0, 0)] * len(shares)
        )
        return [
            Part(*spans, rank == 0)
            for rank, spans in enumerate(zip(heads, kv, units, of_experts, strict=True))
        ]

    def mixer(self, part: Part) -> _native.AttentionConfig | _native.LatentAttentionConfig:
        if self.latent is not None:
            return self.latent.native(self, part.heads)
        return _native.AttentionConfig(
            heads=part.heads,
            kv_heads=part.kv_heads,
            key_size=self.key_size,
            value_size=self.value_size,
            scale=self.scale,
            rope=self.rope,
            window=self.window,
            softcap=self.softcap,
            bias=self.bias,
            output_bias=self.output_bias and part.first,
            head_norm=self.head_norm,
            sinks=self.sinks,
            gate=self.gate,
            row_norm=(self.heads, self.kv_heads) if self.row_norm else None,
            temperature=self.temperature,
            value_norm=self.value_norm,
            keys_as_values=self.keys_as_values,
            kv_layer=self.kv_layer,
        )

    def native(self, part: Part) -> _native.BlockConfig:
        experts = self.experts
        return _native.BlockConfig(
            mixer=self.mixer(part),
            feed_forward=_native.FeedForwardConfig(
                units=part.units,
                activation=self.activation,
                gated=self.gated,
                bias=self.ffn_bias,
                output_bias=self.ffn_output_bias and part.first,
                clamp=native_clamp(self.clamp),
            ),
            experts=experts.native(part.of_experts, part.first) if experts is not None else None,
            feed_forward_gate=self.ffn_gate,
            input_norms=self.input_norms,
            output_norms=self.output_norms,
            residual_scale=self.residual_scale,
            separate_norms=self.separate_norms,
            layer_scale=self.layer_scale,
        )


@dataclass
class Model:
    """A model of a few layers."""

    kinds: list[Block] = field(default_factory=lambda: [Block()])
    kind_of_layer: tuple[int, ...] = (0, 0)
    hidden: int = 24
    vocab: int = 33
    norm: str = "rms"
    ropes: tuple[tuple[int, float, float], ...] = ((4, 10000.0, 1.0),)  # pairs, base, magnitude
    embedding_scale: float = 1.0
    learned_positions: int = 0
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    # Of each layer's own input: its size, and the scales of embedding, projection and sum.
    layer_inputs: tuple[int, float, float, float] | None = None

    def frequencies(self, rope: int) -> NDArray[np.float32]:
        pairs, base, _ = self.ropes[rope]
        return (base ** -(np.arange(pairs) / pairs)).astype(np.float32)

    def native_layer_inputs(self) -> _native.LayerInputsConfig | None:
        if self.layer_inputs is None:
            return None
        size, embedding, projection, both = self.layer_inputs
        return _native.LayerInputsConfig(
            size=size,
            layers=len(self.kind_of_layer),
            activation="gelu_tanh",
            embedding_scale=embedding,
            projection_scale=projection,
            sum_scale=both,
        )

    def shard(
        self,
        threads: int = 1,
        kv_type: str = "f32",
        shares: Sequence[float] = (1.0,),
        rank: int = 0,
        layers: Span | None = None,
    ) -> _native.Shard:
        """Rank `rank` of as many as there are shares; its rows of the head are all of them.

        layers: of a stage; all if None.
        """
        count = len(self.kind_of_layer)
        layers = layers or (0, count)
        config = _native.ShardConfig(
            hidden_size=self.hidden,
            layers=layers,
            kinds=[kind.native(kind.parts(shares)[rank]) for kind in self.kinds],
            kind_of_layer=list(self.kind_of_layer[layers[0] : layers[1]]),
            norm=self.norm,
            norm_epsilon=EPSILON,
            ropes=[
                _native.RopeConfig(
                    frequencies=self.frequencies(number).tolist(), magnitude=self.ropes[number][2]
                )
                for number in range(len(self.ropes))
            ],
            kv_type=kv_type,
            page_size=PAGE,
            max_pages=32,
            max_step_tokens=32,
            embedding=layers[0] == 0,
            vocab_size=self.vocab,
            embedding_scale=self.embedding_scale,
            learned_positions=self.learned_positions,
            vocab=(0, self.vocab if layers[1] == count else 0),
            head_bias=self.head_bias and layers[1] == count,
            logit_scale=self.logit_scale,
            logit_softcap=self.logit_softcap,
            layer_inputs=self.native_layer_inputs(),
        )
        return _native.Shard(config, threads=threads)


def weights_of(shard: _native.Shard, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random weights of every slice; norms are near 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, (rows, columns) in shard.expected().items():
        part = name.rpartition(".")[2]
        if part.endswith("norm"):
            value = 1 + 0.2 * rng.normal(size=(rows, columns))
        elif rows == 1:
            value = 0.5 * rng.normal(size=(rows, columns))
        else:
            value = 1.5 * columns**-0.5 * rng.normal(size=(rows, columns))
        weights[name] = value.astype(np.float32)
    return weights


def load(shard: _native.Shard, weights: dict[str, NDArray[np.float32]]) -> None:
    for name, value in weights.items():
        shard.load(name, "f32", value)


# -- the definition --


def norm(model: Model, weights: dict[str, F64], name: str, x: F64) -> F64:
    weight = weights[name][0]
    if model.norm == "rms":
        return rms(x, weight)
    apart = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((apart**2).mean(-1, keepdims=True) + EPSILON)
    normed: F64 = apart * scale * weight + weights[f"{name}.bias"][0]
    return normed


def rms(x: F64, weight: F64) -> F64:
    normed: F64 = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * weight
    return normed


def activate(name: str, x: F64) -> F64:
    y: F64
    if name == "silu":
        y = x / (1 + np.exp(-x))
    elif name == "gelu_tanh":
        y = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    elif name == "gelu":
        y = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    else:
        y = np.maximum(x, 0) ** 2
    return y


def gated(name: str, clamp: tuple[float, float, float] | None, gate: F64, up: F64) -> F64:
    if clamp is None:
        return activate(name, gate) * up
    limit, factor, offset = clamp
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return activate(name, factor * gate) / factor * (up + offset)


def rotate(model: Model, block: Block, x: F64) -> F64:
    """x: [positions, heads, size]."""
    if block.rope is None:
        return x
    frequencies = model.frequencies(block.rope).astype(np.float64)
    pairs, magnitude = len(frequencies), model.ropes[block.rope][2]
    angles = np.arange(len(x))[:, None, None] * frequencies
    cos, sin = magnitude * np.cos(angles), magnitude * np.sin(angles)
    a, b = x[..., :pairs], x[..., pairs : 2 * pairs]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * pairs :]], -1)


def latent_attention(model: Model, block: Block, latent: Latent, w: dict[str, F64], x: F64) -> F64:
    """Keys and values of every head as products of the latent, as the paper defines them."""
    count, heads, nope = len(x), block.heads, latent.nope_size
    read = rms(x @ w["wq_a"].T, w["q_a_norm"][0]) if latent.query_rank else x
    q = (read @ w["wq"].T).reshape(count, heads, -1)
    q = np.concatenate([q[..., :nope], rotate(model, block, q[..., nope:])], -1)
    both = x @ w["wkv_a"].T
    c = rms(both[:, : latent.kv_rank], w["kv_a_norm"][0])
    shared = rotate(model, block, both[:, None, latent.kv_rank :]).repeat(heads, 1)
    # wk_b has a head's weights the other way round: [heads, kv_rank, nope_size].
    k = np.einsum("sc,hcn->shn", c, w["wk_b"].reshape(heads, latent.kv_rank, nope))
    k = np.concatenate([k, shared], -1)
    v = (c @ w["wv_b"].T).reshape(count, heads, latent.value_size)
    scores = np.einsum("phd,shd->hps", q, k) * block.scale
    scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    out: F64 = np.einsum("hps,shd->phd", shares, v).reshape(count, -1) @ w["wo"].T
    return out


def attention(model: Model, block: Block, w: dict[str, F64], x: F64, cache: list[Pair]) -> F64:
    """cache: keys and values of the layers before this one, to which its own are appended."""
    if block.latent is not None:
        return latent_attention(model, block, block.latent, w, x)
    count, group = len(x), block.heads // block.kv_heads

    def product(name: str, size: int) -> F64:
        y = x @ w[f"w{name}"].T
        return (y + (w[f"b{name}"][0] if block.bias else 0)).reshape(count, -1, size)

    def keys_and_values() -> Pair:
        k = product("k", block.key_size)
        v = k if block.keys_as_values else product("v", block.value_size)
        if block.row_norm:
            k = rms(k.reshape(count, -1), w["k_norm"][0]).reshape(k.shape)
        if block.head_norm:
            k = rms(k, w["k_norm"][0])
        if block.value_norm:
            v = rms(v, np.ones(block.value_size))
        return rotate(model, block, k), v

    q = product("q", block.key_size)
    if block.row_norm:
        q = rms(q.reshape(count, -1), w["q_norm"][0]).reshape(q.shape)
    if block.head_norm:
        q = rms(q, w["q_norm"][0])
    q = rotate(model, block, q)
    cache.append(keys_and_values() if block.kv_layer is None else cache[block.kv_layer])
    k, v = (each.repeat(group, 1) for each in cache[-1])
    if block.temperature is not None:
        slope, length = block.temperature
        q = q * (1 + slope * np.log(1 + np.arange(count) // length))[:, None, None]
    scores = np.einsum("phd,shd->hps", q, k) * block.scale
    if block.softcap:
        scores = block.softcap * np.tanh(scores / block.softcap)
    position, seen = np.arange(count)[:, None], np.arange(count)[None]
    visible = seen <= position
    if block.window:
        visible &= seen > position - block.window
    scores = np.where(visible, scores, -np.inf)
    if block.sinks:
        sinks = np.broadcast_to(w["sinks"][0][:, None, None], (block.heads, count, 1))
        scores = np.concatenate([scores, sinks], -1)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares = (shares / shares.sum(-1, keepdims=True))[..., :count]
    mixed = np.einsum("hps,shd->phd", shares, v).reshape(count, -1)
    if block.gate:
        gate = x @ w["wg"].T + (w["bg"][0] if block.bias else 0)
        mixed = mixed / (1 + np.exp(-gate))
    out: F64 = mixed @ w["wo"].T
    return out + w["bo"][0] if block.output_bias else out


def experts(chosen: Experts, w: dict[str, F64], x: F64, routed: F64) -> F64:
    """Row by row, expert by expert. routed: what the router reads."""
    out = np.zeros_like(x)
    units, hidden = chosen.units, x.shape[1]
    for row, value in enumerate(x):
        products = w["router"] @ routed[row] + (w["router_bias"][0] if chosen.router_bias else 0)
        if chosen.scores == "softmax":
            scores = np.exp(products - products.max())
            scores /= scores.sum()
        else:
            scores = 1 / (1 + np.exp(-products))
        ranks = scores + (w["choice_bias"][0] if chosen.choice_bias else 0)
        if chosen.groups > 1:
            grouped = ranks.reshape(chosen.groups, -1)
            best = np.sort(grouped, axis=1)[:, -2:].sum(1).argsort()[-chosen.used_groups :]
            kept = np.isin(np.arange(chosen.groups), best)
            ranks = np.where(kept[:, None], grouped, -np.inf).ravel()
        picks = ranks.argsort()[::-1][: chosen.used]
        shares = scores[picks]
        if chosen.normalize:
            shares = shares / shares.sum()
        shares = shares * chosen.scale
        if chosen.expert_scales:
            shares = shares * w["expert_scales"][0][picks]
        for pick, share in zip(picks, shares, strict=True):
            rows = slice(pick * units, (pick + 1) * units)
            gate, up = w["experts_w1"][rows] @ value, w["experts_w3"][rows] @ value
            if chosen.bias:
                gate, up = gate + w["experts_b1"][0, rows], up + w["experts_b3"][0, rows]
            down = w["experts_w2"][pick * hidden : (pick + 1) * hidden]
            y = down @ gated(chosen.activation, chosen.clamp, gate, up)
            if chosen.bias:
                y = y + w["experts_b2"][0, pick * hidden : (pick + 1) * hidden]
            out[row] += share * y
    return out


def feed_forward(model: Model, block: Block, w: dict[str, F64], x: F64, residual: F64) -> F64:
    if block.experts is None:
        return whole(block, w, x)
    if block.separate_norms:
        routed = rms(residual, w["router_norm"][0])
        chosen = experts(block.experts, w, norm(model, w, "experts_norm", residual), routed)
        beside = norm(model, w, "ffn_result_norm", whole(block, w, x))
        return beside + norm(model, w, "experts_result_norm", chosen)
    out = experts(block.experts, w, x, x)
    if not block.units:
        return out
    beside = whole(block, w, x)
    if block.ffn_gate:
        beside = beside / (1 + np.exp(-(x @ w["ffn_gate"].T)))
    return out + beside


def whole(block: Block, w: dict[str, F64], x: F64) -> F64:
    gate = x @ w["w1"].T + (w["b1"][0] if block.ffn_bias else 0)
    if block.gated:
        up = x @ w["w3"].T + (w["b3"][0] if block.ffn_bias else 0)
        inner = gated(block.activation, block.clamp, gate, up)
    else:
        inner = activate(block.activation, gate)
    out = inner @ w["w2"].T
    return out + (w["b2"][0] if block.ffn_output_bias else 0)


def layer_inputs(model: Model, w: dict[str, F64], x: F64, tokens: list[int]) -> F64:
    """The layers' own inputs: [tokens, layers, size]."""
    assert model.layer_inputs is not None
    size, embedding, projection, both = model.layer_inputs
    shape = (len(tokens), len(model.kind_of_layer), size)
    projected = (x @ w["layer_projection"].T * projection).reshape(shape)
    rows = w["layer_embedding"][tokens].reshape(shape)
    return (norm(model, w, "layer_projection_norm", projected) + rows * embedding) * both


def reference(model: Model, weights: dict[str, NDArray[np.float32]], tokens: list[int]) -> F64:
    """Logits after every token: [len(tokens), vocab]."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = w["embedding"][tokens] * model.embedding_scale
    if model.learned_positions:
        x = x + w["positions"][: len(tokens)]
    inputs = layer_inputs(model, w, x, tokens) if model.layer_inputs is not None else None
    cache: list[Pair] = []
    for layer, kind in enumerate(model.kind_of_layer):
        block, prefix = model.kinds[kind], f"layers.{layer}."
        own = {n.removeprefix(prefix): v for n, v in w.items() if n.startswith(prefix)}
        for part, name in ((attention, "attn"), (feed_forward, "ffn")):
            read = norm(model, own, f"{name}_norm", x) if block.input_norms else x
            added = (
                attention(model, block, own, read, cache)
                if part is attention
                else feed_forward(model, block, own, read, x)
            )
            if block.output_norms:
                added = norm(model, own, f"{name}_out_norm", added)
            x = x + block.residual_scale * added
        if inputs is not None:
            gate = activate("gelu_tanh", x @ own["layer_gate"].T)
            added = (gate * inputs[:, layer]) @ own["layer_out"].T
            x = x + norm(model, own, "layer_out_norm", added)
        if block.layer_scale:
            x = x * own["layer_scale"][0, 0]
    logits = norm(model, w, "norm", x) @ w["head"].T
    if model.head_bias:
        logits = logits + w["head_bias"][0]
    logits = logits * model.logit_scale
    if model.logit_softcap:
        logits = model.logit_softcap * np.tanh(logits / model.logit_softcap)
    return logits


# -- the core --


def computed(
    model: Model,
    weights: dict[str, NDArray[np.float32]],
    tokens: list[int],
    cuts: tuple[int, ...] = (),
    threads: int = 1,
    kv_type: str = "f32",
) -> NDArray[np.float32]:
    """The same by the core, in steps that end at `cuts`."""
    shard = model.shard(threads, kv_type)
    load(shard, weights)
    pages = list(range(-(-len(tokens) // PAGE)))
    logits = []
    for begin, end in zip((0, *cuts), (*cuts, len(tokens)), strict=True):
        positions = np.arange(begin, end, dtype=np.uint32)
        x = shard.embed(np.array(tokens[begin:end], np.uint32), positions)
        rows = list(range(end - begin))
        logits.append(shard.step(x, [(len(rows), begin, pages)], rows, None).logits)
    return np.concatenate(logits)


def cut_slice(block: Block, part: Part, name: str, value: F32) -> F32:
    """A rank's slice of a layer's tensor, by its name within the layer."""

    def rows(span: Span, size: int = 1) -> F32:
        return value[span[0] * size : span[1] * size]

    def columns(span: Span, size: int = 1) -> F32:
        return value[:, span[0] * size : span[1] * size]

    def of_each(span: Span, cut: int) -> F32:
        """The same rows (cut 1) or columns (cut 2) of every expert."""
        assert block.experts is not None
        stacked = value.reshape(
            block.experts.count, -1, value.shape[1] if value.shape[0] > 1 else 1
        )
        kept = stacked[:, span[0] : span[1]] if cut == 1 else stacked[:, :, span[0] : span[1]]
        return kept.reshape(-1, kept.shape[2]) if value.shape[0] > 1 else kept.reshape(1, -1)

    key_size, value_size = block.key_size, block.value_size
    if block.latent is not None:
        key_size = block.latent.nope_size + block.latent.rope_size
        value_size = block.latent.value_size
        if name == "wk_b":
            return rows(part.heads, block.latent.kv_rank)
    match name:
        case "wq":
            return rows(part.heads, key_size)
        case "wk":
            return rows(part.kv_heads, key_size)
        case "wv":
            return rows(part.kv_heads, value_size)
        case "wv_b" | "wg":
            return rows(part.heads, value_size)
        case "wo":
            return columns(part.heads, value_size)
        case "bq":
            return columns(part.heads, key_size)
        case "bk":
            return columns(part.kv_heads, key_size)
        case "bv":
            return columns(part.kv_heads, value_size)
        case "bg":
            return columns(part.heads, value_size)
        case "q_norm" if block.row_norm:
            return columns(part.heads, key_size)
        case "k_norm" if block.row_norm:
            return columns(part.kv_heads, key_size)
        case "sinks":
            return columns(part.heads)
        case "w1" | "w3":
            return rows(part.units)
        case "w2" | "b1" | "b3":
            return columns(part.units)
        case "experts_w1" | "experts_w3" | "experts_b1" | "experts_b3":
            return of_each(part.of_experts, 1)
        case "experts_w2":
            return of_each(part.of_experts, 2)
    return value


class ThreadLane(_native.Lane):
    """Sums over ranks that are threads of this process, in rank order."""

    def __init__(self, barrier: threading.Barrier, sums: list[F32], rank: int) -> None:
        super().__init__()
        self._barrier, self._sums, self._rank = barrier, sums, rank

    def all_reduce(self, x: F32) -> None:
        self._sums[self._rank] = x.copy()
        self._barrier.wait(30)
        total = np.sum(np.stack(self._sums), axis=0, dtype=np.float32)
        self._barrier.wait(30)
        x[:] = total


def computed_by_ranks(
    model: Model,
    weights: dict[str, F32],
    tokens: list[int],
    cuts: tuple[int, ...],
    shares: Sequence[float],
) -> F32:
    """As `computed`, by ranks that run at once."""
    count = len(shares)
    shards = [model.shard(1, "f32", shares, rank) for rank in range(count)]
    for rank, shard in enumerate(shards):
        for name in shard.expected():
            value = weights[name]
            if name.startswith("layers."):
                _, layer, part = name.split(".", 2)
                block = model.kinds[model.kind_of_layer[int(layer)]]
                value = cut_slice(block, block.parts(shares)[rank], part, value)
            shard.load(name, "f32", np.ascontiguousarray(value))
    barrier, sums = threading.Barrier(count), [np.empty(0, np.float32)] * count
    pages = list(range(-(-len(tokens) // PAGE)))
    logits: list[list[F32]] = [[] for _ in shards]

    def work(rank: int) -> None:
        lane = ThreadLane(barrier, sums, rank)
        for begin, end in zip((0, *cuts), (*cuts, len(tokens)), strict=True):
            positions = np.arange(begin, end, dtype=np.uint32)
            x = shards[rank].embed(np.array(tokens[begin:end], np.uint32), positions)
            rows = list(range(end - begin))
            step = shards[rank].step(x, [(len(rows), begin, pages)], rows, lane)
            logits[rank].append(step.logits)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for rank in range(1, count):
        np.testing.assert_array_equal(np.concatenate(logits[rank]), np.concatenate(logits[0]))
    return np.concatenate(logits[0])
