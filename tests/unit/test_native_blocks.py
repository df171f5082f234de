"""The core's blocks against a plain numpy definition, with every feature on and off.

The reference shares nothing with the core: float64 throughout, no pages, no batches, one position
of one sequence after another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from hearth import _native

F64 = NDArray[np.float64]
PAGE = 4
EPSILON = 1e-5


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

    def native(self) -> _native.ExpertsConfig:
        return _native.ExpertsConfig(
            count=self.count,
            used=self.used,
            expert=_native.FeedForwardConfig(
                units=(0, self.units),
                activation=self.activation,
                bias=self.bias,
                output_bias=self.bias,
            ),
            scores=self.scores,
            normalize=self.normalize,
            scale=self.scale,
            router_bias=self.router_bias,
            choice_bias=self.choice_bias,
            groups=self.groups,
            used_groups=self.used_groups,
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
    units: int = 40
    activation: str = "silu"
    gated: bool = True
    ffn_bias: bool = False
    ffn_output_bias: bool = False
    input_norms: bool = True
    output_norms: bool = False
    residual_scale: float = 1.0
    experts: Experts | None = None
    ffn_gate: bool = False

    def native(self) -> _native.BlockConfig:
        return _native.BlockConfig(
            mixer=_native.AttentionConfig(
                heads=(0, self.heads),
                kv_heads=(0, self.kv_heads),
                key_size=self.key_size,
                value_size=self.value_size,
                scale=self.scale,
                rope=self.rope,
                window=self.window,
                softcap=self.softcap,
                bias=self.bias,
                output_bias=self.output_bias,
                head_norm=self.head_norm,
                sinks=self.sinks,
                gate=self.gate,
            ),
            feed_forward=_native.FeedForwardConfig(
                units=(0, self.units),
                activation=self.activation,
                gated=self.gated,
                bias=self.ffn_bias,
                output_bias=self.ffn_output_bias,
            ),
            experts=self.experts.native() if self.experts is not None else None,
            feed_forward_gate=self.ffn_gate,
            input_norms=self.input_norms,
            output_norms=self.output_norms,
            residual_scale=self.residual_scale,
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

    def frequencies(self, rope: int) -> NDArray[np.float32]:
        pairs, base, _ = self.ropes[rope]
        return (base ** -(np.arange(pairs) / pairs)).astype(np.float32)

    def shard(self, threads: int = 1, kv_type: str = "f32") -> _native.Shard:
        config = _native.ShardConfig(
            hidden_size=self.hidden,
            layers=(0, len(self.kind_of_layer)),
            kinds=[kind.native() for kind in self.kinds],
            kind_of_layer=list(self.kind_of_layer),
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
            embedding=True,
            vocab_size=self.vocab,
            embedding_scale=self.embedding_scale,
            learned_positions=self.learned_positions,
            vocab=(0, self.vocab),
            head_bias=self.head_bias,
            logit_scale=self.logit_scale,
            logit_softcap=self.logit_softcap,
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


def attention(model: Model, block: Block, w: dict[str, F64], x: F64) -> F64:
    count, group = len(x), block.heads // block.kv_heads

    def product(name: str, size: int) -> F64:
        y = x @ w[f"w{name}"].T
        return (y + (w[f"b{name}"][0] if block.bias else 0)).reshape(count, -1, size)

    q, k = product("q", block.key_size), product("k", block.key_size)
    v = product("v", block.value_size).repeat(group, 1)
    if block.head_norm:
        q, k = rms(q, w["q_norm"][0]), rms(k, w["k_norm"][0])
    q, k = rotate(model, block, q), rotate(model, block, k).repeat(group, 1)
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
        mixed = mixed / (1 + np.exp(-(x @ w["wg"].T)))
    out: F64 = mixed @ w["wo"].T
    return out + w["bo"][0] if block.output_bias else out


def experts(chosen: Experts, w: dict[str, F64], x: F64) -> F64:
    """Row by row, expert by expert."""
    out = np.zeros_like(x)
    units, hidden = chosen.units, x.shape[1]
    for row, value in enumerate(x):
        products = w["router"] @ value + (w["router_bias"][0] if chosen.router_bias else 0)
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
        for pick, share in zip(picks, shares * chosen.scale, strict=True):
            rows = slice(pick * units, (pick + 1) * units)
            gate, up = w["experts_w1"][rows] @ value, w["experts_w3"][rows] @ value
            if chosen.bias:
                gate, up = gate + w["experts_b1"][0, rows], up + w["experts_b3"][0, rows]
            down = w["experts_w2"][pick * hidden : (pick + 1) * hidden]
            y = down @ (activate(chosen.activation, gate) * up)
            if chosen.bias:
                y = y + w["experts_b2"][0, pick * hidden : (pick + 1) * hidden]
            out[row] += share * y
    return out


def feed_forward(block: Block, w: dict[str, F64], x: F64) -> F64:
    if block.experts is None:
        return whole(block, w, x)
    out = experts(block.experts, w, x)
    if not block.units:
        return out
    beside = whole(block, w, x)
    if block.ffn_gate:
        beside = beside / (1 + np.exp(-(x @ w["ffn_gate"].T)))
    return out + beside


def whole(block: Block, w: dict[str, F64], x: F64) -> F64:
    gate = x @ w["w1"].T + (w["b1"][0] if block.ffn_bias else 0)
    inner = activate(block.activation, gate)
    if block.gated:
        inner = inner * (x @ w["w3"].T + (w["b3"][0] if block.ffn_bias else 0))
    out = inner @ w["w2"].T
    return out + (w["b2"][0] if block.ffn_output_bias else 0)


def reference(model: Model, weights: dict[str, NDArray[np.float32]], tokens: list[int]) -> F64:
    """Logits after every token: [len(tokens), vocab]."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = w["embedding"][tokens] * model.embedding_scale
    if model.learned_positions:
        x = x + w["positions"][: len(tokens)]
    for layer, kind in enumerate(model.kind_of_layer):
        block, prefix = model.kinds[kind], f"layers.{layer}."
        own = {n.removeprefix(prefix): v for n, v in w.items() if n.startswith(prefix)}
        for part, name in ((attention, "attn"), (feed_forward, "ffn")):
            read = norm(model, own, f"{name}_norm", x) if block.input_norms else x
            added = (
                attention(model, block, own, read)
                if part is attention
                else feed_forward(block, own, read)
            )
            if block.output_norms:
                added = norm(model, own, f"{name}_out_norm", added)
            x = x + block.residual_scale * added
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


TOKENS = [5, 0, 31, 17, 17, 2, 30, 9, 11, 4, 4, 28, 1]
ONE = Block()
CASES = {
    "plain": Model(),
    "layer norm": Model(norm="layer"),
    "biases": Model([Block(bias=True, output_bias=True, ffn_bias=True, ffn_output_bias=True)]),
    "head norm": Model([Block(head_norm=True)]),
    "no rotation": Model([Block(rope=None)], ropes=()),
    "half of a head rotated": Model([Block(key_size=12)]),
    "rotation with a magnitude": Model(ropes=((4, 500.0, 1.3),)),
    "wide keys, narrow values": Model([Block(key_size=20, value_size=6)]),
    "narrow keys, wide values": Model([Block(key_size=8, value_size=34)]),
    "window of 1": Model([Block(window=1)]),
    "window of 3": Model([Block(window=3)]),
    "window of a page": Model([Block(window=PAGE)]),
    "window of 7": Model([Block(window=7)]),
    "window as long as the text": Model([Block(window=len(TOKENS))]),
    "soft cap": Model([Block(softcap=0.7, scale=1.5)]),
    "sinks": Model([Block(sinks=True)]),
    "sinks and a window": Model([Block(sinks=True, window=3)]),
    "output gate": Model([Block(gate=True)]),
    "plain feed-forward, gelu_tanh": Model([Block(gated=False, activation="gelu_tanh")]),
    "plain feed-forward, gelu": Model([Block(gated=False, activation="gelu", ffn_bias=True)]),
    "relu squared": Model([Block(activation="relu_squared")]),
    "gated gelu_tanh": Model([Block(activation="gelu_tanh")]),
    "norms before and after": Model([Block(output_norms=True)]),
    "norms after only": Model([Block(input_norms=False, output_norms=True)]),
    "residual scale": Model([Block(residual_scale=0.22)]),
    "scales of embedding and logits": Model(embedding_scale=4.9, logit_scale=0.13),
    "logits with bias and cap": Model(head_bias=True, logit_softcap=0.8),
    "learned positions": Model([Block(rope=None)], ropes=(), learned_positions=16),
    "two kinds of layers": Model(
        [
            Block(window=3, rope=0, head_norm=True, output_norms=True),
            Block(heads=6, kv_heads=1, key_size=10, value_size=14, rope=1, units=24, softcap=2.0),
        ],
        (0, 1, 0),
        ropes=((4, 10000.0, 1.0), (3, 100.0, 1.0)),
    ),
    "experts": Model([Block(units=0, experts=Experts())]),
    "one expert": Model([Block(units=0, experts=Experts(used=1, normalize=False))]),
    "all experts, with biases": Model(
        [Block(units=0, experts=Experts(used=8, bias=True, router_bias=True))]
    ),
    "experts by sigmoid, in groups": Model(
        [
            Block(
                units=0,
                experts=Experts(
                    count=12,
                    used=4,
                    scores="sigmoid",
                    choice_bias=True,
                    scale=2.5,
                    groups=4,
                    used_groups=2,
                ),
            )
        ]
    ),
    "experts and a feed-forward": Model([Block(units=24, experts=Experts(normalize=False))]),
    "experts and a gated feed-forward": Model(
        [Block(units=24, experts=Experts(units=32), ffn_gate=True), Block(units=40)], (1, 0, 1)
    ),
    "experts of two kinds": Model(
        [
            Block(units=0, experts=Experts(count=8, used=2, units=8)),
            Block(units=16, experts=Experts(count=5, used=4, units=24, activation="gelu_tanh")),
        ],
        (0, 1, 0),
    ),
    "all at once": Model(
        [
            Block(bias=True, output_bias=True, sinks=True, gate=True, window=5, softcap=3.0),
            Block(ffn_bias=True, ffn_output_bias=True, gated=False, activation="gelu_tanh"),
        ],
        (1, 0),
        norm="layer",
        embedding_scale=2.0,
        learned_positions=20,
        head_bias=True,
        logit_scale=0.5,
        logit_softcap=5.0,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (6,), (4, 8, 9, 12)])
def test_blocks_are_as_defined(name: str, cuts: tuple[int, ...]) -> None:
    model = CASES[name]
    weights = weights_of(model.shard(), seed=len(name))
    expected = reference(model, weights, TOKENS)
    assert np.abs(expected).max() > 0.1
    # f32 against f64: sums of up to 40 terms near 1, over a few layers.
    for threads in (1, 3):
        got = computed(model, weights, TOKENS, cuts, threads)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_each_feature_matters(name: str) -> None:
    """The definition without a case's features gives other logits: the test above would see it."""
    if name == "plain":
        return
    model = CASES[name]
    weights = weights_of(model.shard(), seed=len(name))
    expected = reference(model, weights, TOKENS)
    ropes = model.ropes or ((4, 10000.0, 1.0),)
    sizes = {
        key: getattr(model.kinds[0], key)
        for key in ("heads", "kv_heads", "key_size", "value_size", "units", "gated", "input_norms")
    }
    if name in ("no rotation", "learned positions"):
        sizes["rope"] = 0
    if name == "rotation with a magnitude":
        ropes = ((4, 500.0, 1.0),)
    plain = Model([Block(**sizes)], tuple(0 for _ in model.kind_of_layer), ropes=ropes)
    if name in ("two kinds of layers", "all at once", "norms after only", "layer norm"):
        return  # their weights do not fit another shape; each part has a case of its own
    if "expert" in name:
        return  # other weights; each option has a case of its own
    if name.startswith(("wide keys", "narrow keys", "half of", "window as long")):
        return  # shapes, and a window that hides nothing
    others = {key: value for key, value in weights.items() if key in plain.shard().expected()}
    if plain.shard().expected().keys() == others.keys():
        assert np.abs(reference(plain, others, TOKENS) - expected).max() > 1e-2


@pytest.mark.parametrize("kv_type", ["f16", "q80"])
@pytest.mark.parametrize("name", ["window of 3", "sinks and a window", "wide values"])
def test_other_types_of_the_kv_cache(name: str, kv_type: str) -> None:
    block = Block(key_size=32, value_size=64, window=3, sinks="sinks" in name)
    model = Model([block], ropes=((16, 10000.0, 1.0),))
    weights = weights_of(model.shard(), seed=3)
    expected = reference(model, weights, TOKENS)
    # Half a step of an 8-bit number of up to about 4, or of f16's 11 bits, over two layers.
    tolerance = 0.15 if kv_type == "q80" else 5e-3
    for cuts in ((), (5,), tuple(range(1, len(TOKENS)))):
        got = computed(model, weights, TOKENS, cuts, 2, kv_type)
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
@pytest.mark.parametrize("name", CASES)
def test_all_kernels(name: str, instruction_set: str) -> None:
    model = CASES[name]
    best = _native.instruction_set()
    _native.set_instruction_set(instruction_set)
    try:
        weights = weights_of(model.shard(), seed=7)
        got = computed(model, weights, TOKENS, (6,), 2)
    finally:
        _native.set_instruction_set(best)
    np.testing.assert_allclose(got, reference(model, weights, TOKENS), rtol=0, atol=2e-4)


@pytest.mark.parametrize("type", ["q80", "q40"])
def test_quantized_weights_of_kinds_of_different_widths(type: str) -> None:
    """The quantized copy of a buffer has its own width in every kind of block."""
    kinds = [
        Block(key_size=32, value_size=32, units=96, output_norms=True),
        Block(heads=2, kv_heads=1, key_size=16, value_size=80, units=32, gate=True, window=5),
        # All experts, so that no rounding changes the choice.
        Block(key_size=16, value_size=16, units=0, experts=Experts(count=3, used=3, units=64)),
    ]
    model = Model(kinds, (0, 1, 2), hidden=64, ropes=((8, 10000.0, 1.0),))
    weights = weights_of(model.shard(), seed=5)
    shard, dequantized = model.shard(2), {}
    for name, value in weights.items():
        if value.shape[0] == 1:
            shard.load(name, "f32", value)
            dequantized[name] = value
        else:
            data = _native.quantize(value, type)
            shard.load(name, type, data)
            dequantized[name] = _native.dequantize(data, type, value.shape[1])
    expected = reference(model, dequantized, TOKENS)
    x = shard.embed(np.array(TOKENS, np.uint32), np.empty(0, np.uint32))
    rows = list(range(len(TOKENS)))
    got = shard.step(x, [(len(rows), 0, [0, 1, 2, 3])], rows, None).logits
    # Activations of 8 bits: three layers of one kind are up to 0.11 away, and a buffer read with
    # another kind's width is as far away as random numbers are.
    assert np.abs(got - expected).max() < 0.15 * np.abs(expected).max()


def test_positions_that_the_model_lacks() -> None:
    model = CASES["learned positions"]
    shard = model.shard()
    load(shard, weights_of(shard, 1))
    with pytest.raises(ValueError, match="position 16 of a model of 16 positions"):
        shard.embed(np.array([1], np.uint32), np.array([16], np.uint32))
    with pytest.raises(ValueError, match="0 positions for 1 tokens"):
        shard.embed(np.array([1], np.uint32), np.empty(0, np.uint32))
