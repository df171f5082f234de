"""The core's blocks against a plain numpy definition (tests/blocks.py), with every feature on and
off, on one node and cut over several.
"""

from __future__ import annotations

import numpy as np
import pytest
from blocks import (
    PAGE,
    Block,
    Experts,
    Latent,
    Model,
    computed,
    computed_by_ranks,
    load,
    reference,
    weights_of,
)

from hearth import _native

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
    "norms of whole rows": Model([Block(row_norm=True, heads=6)]),
    "queries that grow": Model([Block(temperature=(0.7, 3.0))]),
    "latent attention": Model([Block(latent=Latent())]),
    "latent attention with latent queries": Model([Block(heads=5, latent=Latent(query_rank=12))]),
    "latent attention beside the other": Model(
        [Block(latent=Latent(kv_rank=33, value_size=3), output_norms=True), Block(window=3)],
        (0, 1, 0),
    ),
    "clamped feed-forward": Model([Block(clamp=(0.8, 1.702, 1.0))]),
    "clamped experts": Model(
        [Block(units=0, experts=Experts(units=16, bias=True, clamp=(0.5, 1.702, 1.0)))]
    ),
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
    "norms of values": Model([Block(value_norm=True, value_size=14)]),
    "keys as values": Model([Block(keys_as_values=True, head_norm=True, bias=True)]),
    "keys as values, normed": Model([Block(keys_as_values=True, head_norm=True, value_norm=True)]),
    "layers that are scaled": Model([Block(layer_scale=True)], (0, 0, 0)),
    "layers of which some are scaled": Model([Block(layer_scale=True), Block()], (0, 1, 0)),
    "keys of an earlier layer": Model(
        [
            Block(head_norm=True, window=3),
            Block(heads=6, kv_heads=3, key_size=12, bias=True),
            Block(head_norm=True, window=3, kv_layer=0, units=24),
            Block(heads=6, kv_heads=3, key_size=12, bias=True, kv_layer=1),
        ],
        (0, 1, 2, 3, 2),
    ),
    "experts with scales": Model([Block(units=0, experts=Experts(expert_scales=True))]),
    "experts with norms of their own": Model(
        [
            Block(units=24, separate_norms=True, experts=Experts(expert_scales=True)),
            Block(
                units=40,
                separate_norms=True,
                output_norms=True,
                ffn_bias=True,
                ffn_output_bias=True,
                layer_scale=True,
                experts=Experts(units=8, bias=True, activation="gelu_tanh"),
            ),
            Block(),
        ],
        (0, 1, 2, 0),
    ),
    "layers with inputs of their own": Model(
        [Block(), Block(output_norms=True, layer_scale=True)],
        (0, 1, 0),
        layer_inputs=(10, 3.0, 0.2, 0.7),
        embedding_scale=4.9,
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
@pytest.mark.parametrize("shares", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0, 1.0)])
def test_ranks_add_up(name: str, shares: tuple[float, ...]) -> None:
    """Cut over ranks, also over more than there are KV heads, the blocks give the same."""
    model = CASES[name]
    weights = weights_of(model.shard(), seed=len(name))
    got = computed_by_ranks(model, weights, TOKENS, (6, 7), shares)
    np.testing.assert_allclose(got, reference(model, weights, TOKENS), rtol=0, atol=2e-4)


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
    if name in ("keys of an earlier layer", "layers with inputs of their own"):
        return  # likewise
    if "keys as values" in name:
        return  # fewer weights
    if "latent" in name:
        return  # another mixer
    if "expert" in name:
        return  # other weights; each option has a case of its own
    if name.startswith(("wide keys", "narrow keys", "half of", "window as long")):
        return  # shapes, and a window that hides nothing
    others = {key: value for key, value in weights.items() if key in plain.shard().expected()}
    if plain.shard().expected().keys() == others.keys():
        assert np.abs(reference(plain, others, TOKENS) - expected).max() > 1e-2


@pytest.mark.parametrize(
    ("name", "border"),
    [
        ("two kinds of layers", 1),
        ("layers of which some are scaled", 1),
        ("experts with norms of their own", 2),
        ("layers with inputs of their own", 1),
        ("layers with inputs of their own", 2),
    ],
)
def test_stages_hand_rows_on(name: str, border: int) -> None:
    model = CASES[name]
    count = len(model.kind_of_layer)
    weights = weights_of(model.shard(), seed=len(name))
    rows = list(range(len(TOKENS)))
    x = np.empty(0, np.float32)
    for layers in ((0, border), (border, count)):
        shard = model.shard(layers=layers)
        load(shard, {part: weights[part] for part in shard.expected()})
        if layers[0] == 0:
            x = shard.embed(np.array(TOKENS, np.uint32), np.empty(0, np.uint32))
        last = rows if layers[1] == count else []
        step = shard.step(x, [(len(rows), 0, [0, 1, 2, 3])], last, None)
        x = step.activations
    expected = reference(model, weights, TOKENS)
    np.testing.assert_allclose(step.logits, expected, rtol=0, atol=2e-4)


def test_keys_of_a_layer_on_another_stage() -> None:
    with pytest.raises(ValueError, match="layer 2 reads the keys of layer 0, which is not an earl"):
        CASES["keys of an earlier layer"].shard(layers=(1, 5))


@pytest.mark.parametrize("kv_type", ["f16", "q80"])
@pytest.mark.parametrize("name", ["window of 3", "sinks and a window", "latent"])
def test_other_types_of_the_kv_cache(name: str, kv_type: str) -> None:
    block = Block(key_size=32, value_size=64, window=3, sinks="sinks" in name)
    if name == "latent":
        block = Block(heads=7, scale=0.1, latent=Latent(kv_rank=64, rope_size=32))
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


# All experts are used, so that no rounding changes the choice.
QUANTIZED = {
    # The quantized copy of a buffer has its own width in every kind of block.
    "kinds of different widths": Model(
        [
            Block(key_size=32, value_size=32, units=96, output_norms=True),
            Block(heads=2, kv_heads=1, key_size=16, value_size=80, units=32, gate=True, window=5),
            Block(key_size=16, value_size=16, units=0, experts=Experts(count=3, used=3, units=64)),
            Block(
                units=32, latent=Latent(32, kv_rank=64, nope_size=32, rope_size=16, value_size=24)
            ),
        ],
        (0, 1, 2, 3),
        hidden=64,
        ropes=((8, 10000.0, 1.0),),
    ),
    "norms of experts, inputs of layers": Model(
        [
            Block(
                key_size=32,
                value_size=32,
                value_norm=True,
                units=32,
                separate_norms=True,
                output_norms=True,
                layer_scale=True,
                experts=Experts(count=3, used=3, units=64, expert_scales=True),
            ),
            Block(key_size=32, value_size=32, units=64, kv_layer=0),
        ],
        (0, 1),
        hidden=64,
        layer_inputs=(32, 2.0, 0.3, 0.7),
    ),
}


@pytest.mark.parametrize("type", ["q80", "q40"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_weights(name: str, type: str) -> None:
    model = QUANTIZED[name]
    weights = weights_of(model.shard(), seed=5)
    shard, dequantized = model.shard(2), {}
    for part, value in weights.items():
        if value.shape[0] == 1:
            shard.load(part, "f32", value)
            dequantized[part] = value
        else:
            data = _native.quantize(value, type)
            shard.load(part, type, data)
            dequantized[part] = _native.dequantize(data, type, value.shape[1])
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
