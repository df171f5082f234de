"""The core's forward pass against a plain numpy Llama, whole and cut over ranks.

The reference below shares nothing with the core: float64 throughout, no pages, no batches.
"""

import threading
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from hearth import _native

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int


SHAPES = [
    Shape(hidden=32, layers=2, heads=4, kv_heads=2, head_size=8, ffn=48, vocab=40),
    Shape(hidden=36, layers=1, heads=6, kv_heads=3, head_size=10, ffn=44, vocab=37),
    Shape(hidden=64, layers=2, heads=4, kv_heads=4, head_size=32, ffn=96, vocab=61),
    Shape(hidden=96, layers=1, heads=8, kv_heads=2, head_size=64, ffn=160, vocab=129),
]
EPSILON = 1e-5
NO_POSITIONS = np.empty(0, np.uint32)


def frequencies(shape: Shape) -> NDArray[np.float32]:
    half = np.arange(0, shape.head_size, 2, dtype=np.float32) / shape.head_size
    return (10000.0**-half).astype(np.float32)


def random_weights(shape: Shape, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    weights = {
        "embedding": matrix(shape.vocab, shape.hidden),
        "head": matrix(shape.vocab, shape.hidden),
        "norm": 1 + 0.1 * matrix(1, shape.hidden),
    }
    for n in range(shape.layers):
        for name, rows, columns in [
            ("wq", q, shape.hidden),
            ("wk", kv, shape.hidden),
            ("wv", kv, shape.hidden),
            ("wo", shape.hidden, q),
            ("w1", shape.ffn, shape.hidden),
            ("w3", shape.ffn, shape.hidden),
            ("w2", shape.hidden, shape.ffn),
        ]:
            weights[f"layers.{n}.{name}"] = matrix(rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            weights[f"layers.{n}.{name}"] = 1 + 0.1 * matrix(1, shape.hidden)
    return weights


def reference_logits(
    shape: Shape, weights: dict[str, NDArray[np.float32]], tokens: list[int]
) -> F64:
    """Logits of every position of one sequence: [len(tokens), vocab]."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    n, size, group = len(tokens), shape.head_size, shape.heads // shape.kv_heads

    def norm(x: F64, weight: F64) -> F64:
        normed: F64 = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * weight
        return normed

    angle = np.arange(n)[:, None] * frequencies(shape).astype(np.float64)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def rotate(x: F64) -> F64:
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = w["embedding"][tokens]
    mask = np.triu(np.full((n, n), -np.inf), 1)
    for layer in range(shape.layers):
        at = f"layers.{layer}."
        y = norm(x, w[at + "attn_norm"])
        q = rotate((y @ w[at + "wq"].T).reshape(n, shape.heads, size))
        k = rotate((y @ w[at + "wk"].T).reshape(n, shape.kv_heads, size)).repeat(group, 1)
        v = (y @ w[at + "wv"].T).reshape(n, shape.kv_heads, size).repeat(group, 1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(size) + mask
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", p, v).reshape(n, -1) @ w[at + "wo"].T
        y = norm(x, w[at + "ffn_norm"])
        gate = y @ w[at + "w1"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w[at + "w3"].T)) @ w[at + "w2"].T
    return norm(x, w["norm"]) @ w["head"].T


def cut(items: int, ranks: int, rank: int) -> tuple[int, int]:
    return items * rank // ranks, items * (rank + 1) // ranks


def make_shard(
    shape: Shape,
    weights: dict[str, NDArray[np.float32]],
    *,
    ranks: int = 1,
    rank: int = 0,
    type: str = "f32",
    threads: int = 1,
    kv_type: str = "f32",
    page_size: int = 4,
    layers: tuple[int, int] | None = None,
) -> _native.Shard:
    kv = cut(shape.kv_heads, ranks, rank)
    group = shape.heads // shape.kv_heads
    heads = (kv[0] * group, kv[1] * group)
    ffn, vocab = cut(shape.ffn, ranks, rank), cut(shape.vocab, ranks, rank)
    layers = layers or (0, shape.layers)
    last = layers[1] == shape.layers
    attention = _native.AttentionConfig(
        heads=heads,
        kv_heads=kv,
        key_size=shape.head_size,
        value_size=shape.head_size,
        scale=shape.head_size**-0.5,
        rope=0,
    )
    feed_forward = _native.FeedForwardConfig(units=ffn)
    config = _native.ShardConfig(
        hidden_size=shape.hidden,
        layers=layers,
        kinds=[_native.BlockConfig(mixer=attention, feed_forward=feed_forward)],
        kind_of_layer=[0] * (layers[1] - layers[0]),
        norm_epsilon=EPSILON,
        ropes=[_native.RopeConfig(frequencies=frequencies(shape).tolist())],
        kv_type=kv_type,
        page_size=page_size,
        max_pages=64,
        max_step_tokens=64,
        embedding=rank == 0,
        vocab_size=shape.vocab,
        vocab=vocab if last else (0, 0),
    )
    shard = _native.Shard(config, threads=threads)
    size = shape.head_size
    for name in shard.missing():
        value = weights[name]
        match name.split(".")[-1]:
            case "wq":
                value = value[heads[0] * size : heads[1] * size]
            case "wk" | "wv":
                value = value[kv[0] * size : kv[1] * size]
            case "wo":
                value = value[:, heads[0] * size : heads[1] * size]
            case "w1" | "w3":
                value = value[ffn[0] : ffn[1]]
            case "w2":
                value = value[:, ffn[0] : ffn[1]]
            case "head":
                value = value[vocab[0] : vocab[1]]
        kind = "f32" if "norm" in name else type
        if kind.startswith("q") and value.shape[1] % 32:
            kind = "f16"
        shard.load(name, kind, _native.quantize(np.ascontiguousarray(value), kind))
    return shard


class ThreadLane(_native.Lane):
    """Sums over ranks that are threads of this process, in rank order."""

    def __init__(self, meeting: "Meeting", rank: int) -> None:
        super().__init__()
        self._meeting, self._rank = meeting, rank

    def all_reduce(self, x: NDArray[np.float32]) -> None:
        meeting = self._meeting
        meeting.parts[self._rank] = x.copy()
        meeting.barrier.wait(30)
        total = np.sum(np.stack(meeting.parts), axis=0, dtype=np.float32)
        meeting.barrier.wait(30)
        x[:] = total


class Meeting:
    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)
        self.parts: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * ranks


def run_step(
    shards: list[_native.Shard],
    tokens: list[int],
    sequences: list[tuple[int, int, list[int]]],
    output_rows: list[int],
) -> NDArray[np.float32]:
    """One step on all ranks at once; logits [output_rows, vocab]."""
    x = shards[0].embed(np.array(tokens, np.uint32), NO_POSITIONS)
    meeting = Meeting(len(shards))
    logits: list[NDArray[np.float32] | None] = [None] * len(shards)

    def work(rank: int) -> None:
        lane = ThreadLane(meeting, rank) if len(shards) > 1 else None
        logits[rank] = shards[rank].step(x, sequences, output_rows, lane).logits

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(part is not None for part in logits)
    return np.concatenate([part for part in logits if part is not None], axis=1)


@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"hidden{shape.hidden}")
def test_logits_match_the_reference(shape: Shape, ranks: int, instruction_set: str) -> None:
    """Two sequences share a batch, prompts are split over steps, pages are out of order."""
    if ranks > shape.kv_heads:
        ranks = shape.kv_heads
    weights = random_weights(shape)
    best = _native.instruction_set()
    try:
        _native.set_instruction_set(instruction_set)
        shards = [
            make_shard(shape, weights, ranks=ranks, rank=rank, threads=1 + rank % 2)
            for rank in range(ranks)
        ]
    finally:
        _native.set_instruction_set(best)
    rng = np.random.default_rng(1)
    a = rng.integers(0, shape.vocab, 11).tolist()
    b = rng.integers(0, shape.vocab, 7).tolist()
    pages_a, pages_b = [9, 2, 5], [7, 1]
    first = run_step(shards, a[:6] + b[:1], [(6, 0, pages_a), (1, 0, pages_b)], [0, 5, 6])
    second = run_step(shards, b[1:] + a[6:], [(6, 1, pages_b), (5, 6, pages_a)], [0, 5, 10])
    whole_a, whole_b = reference_logits(shape, weights, a), reference_logits(shape, weights, b)
    # float32 against float64 over a few dozen to a hundred terms a sum: errors near 1e-6.
    np.testing.assert_allclose(first, [whole_a[0], whole_a[5], whole_b[0]], atol=3e-5)
    np.testing.assert_allclose(second, [whole_b[1], whole_b[6], whole_a[10]], atol=3e-5)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q80"])
@pytest.mark.parametrize("type", ["f32", "f16", "q80", "q40"])
def test_bits_do_not_depend_on_batch_threads_or_kernels(type: str, kv_type: str) -> None:
    """The same sequence gives the same bits alone, in pieces, in company, and with more threads."""
    shape = SHAPES[3]
    weights = random_weights(shape)
    tokens = np.random.default_rng(2).integers(0, shape.vocab, 13).tolist()
    alone = make_shard(shape, weights, type=type, kv_type=kv_type)
    expected = run_step([alone], tokens, [(13, 0, [0, 1, 2, 3])], [12])
    shard = make_shard(shape, weights, type=type, kv_type=kv_type, threads=3)
    other = [1, 2, 3, 4, 5]
    run_step([shard], other + tokens[:3], [(5, 0, [8, 9]), (3, 0, [4, 5])], [])
    pages = [4, 5, 6, 7]
    run_step([shard], [*tokens[3:12], 6], [(9, 3, pages), (1, 5, [8, 9])], [])
    got = run_step([shard], [7, tokens[12]], [(1, 6, [8, 9]), (1, 12, pages)], [1])
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("type", "bound"), [("f16", 2e-3), ("q80", 0.05), ("q40", 0.5)])
def test_quantized_weights_stay_near_the_reference(type: str, bound: float) -> None:
    """Bounds follow the types' steps: 2^-11, 1/127, 1/8 of a block's largest; some sums."""
    shape = SHAPES[3]
    weights = random_weights(shape)
    tokens = list(range(10))
    shard = make_shard(shape, weights, type=type, kv_type="f16")
    got = run_step([shard], tokens, [(10, 0, [0, 1, 2])], [9])[0]
    expected = reference_logits(shape, weights, tokens)[9]
    assert np.sqrt(np.mean((got - expected) ** 2)) < bound * np.sqrt(np.mean(expected**2))


def test_a_q80_cache_stays_near_the_reference() -> None:
    """Keys and values in 8 bits: errors of 1/254 of a block's largest, averaged by attention."""
    shape = SHAPES[3]
    weights = random_weights(shape)
    tokens = np.random.default_rng(3).integers(0, shape.vocab, 23).tolist()
    shard = make_shard(shape, weights, kv_type="q80", threads=2)
    run_step([shard], tokens[:20], [(20, 0, [5, 3, 1, 0, 2, 4])], [])
    got = run_step([shard], tokens[20:], [(3, 20, [5, 3, 1, 0, 2, 4])], [2])[0]
    expected = reference_logits(shape, weights, tokens)[22]
    assert np.sqrt(np.mean((got - expected) ** 2)) < 0.02 * np.sqrt(np.mean(expected**2))
    with pytest.raises(ValueError, match="q80 needs a head size that is a multiple of 32, not 8"):
        make_shard(SHAPES[0], random_weights(SHAPES[0]), kv_type="q80")


def test_stages_hand_activations_on() -> None:
    """Layers cut into two shards give the logits of the whole."""
    shape = SHAPES[0]
    weights = random_weights(shape)
    first = make_shard(shape, weights, layers=(0, 1))
    second = make_shard(shape, weights, layers=(1, 2))
    x = first.embed(np.arange(5, dtype=np.uint32), NO_POSITIONS)
    sequences = [(5, 0, [0, 1])]
    middle = first.step(x, sequences, [], None).activations
    got = second.step(middle, sequences, [4], None).logits
    expected = run_step([make_shard(shape, weights)], list(range(5)), sequences, [4])
    np.testing.assert_array_equal(got, expected)


def test_what_does_not_fit_is_refused() -> None:
    shape = SHAPES[0]
    shard = make_shard(shape, random_weights(shape))
    x = shard.embed(np.arange(3, dtype=np.uint32), NO_POSITIONS)
    cases: list[tuple[list[tuple[int, int, list[int]]], list[int], str]] = [
        ([(2, 0, [0])], [], "activations have"),
        ([(3, 2, [0])], [], "do not fit 1 pages"),
        ([(3, 0, [64])], [], "page 64 of a KV cache of 64"),
        ([(3, 0, [])], [], "do not fit 0 pages"),
        ([(3, 2**60, [0])], [], "do not fit"),
        ([(0, 0, [0])], [], "0 rows"),
        ([(3, 0, [0])], [3], "output row 3"),
    ]
    for sequences, rows, message in cases:
        with pytest.raises(ValueError, match=message):
            shard.step(x, sequences, rows, None)
    with pytest.raises(ValueError, match="token 40 of a vocabulary of 40"):
        shard.embed(np.array([40], np.uint32), NO_POSITIONS)
    with pytest.raises(ValueError, match="no slice 'nonsense'"):
        shard.load("nonsense", "f32", b"")
    with pytest.raises(ValueError, match="came twice"):
        shard.load("norm", "f32", np.ones(32, np.float32))


def test_a_failing_lane_ends_the_step_and_not_the_shard() -> None:
    class Broken(_native.Lane):
        def all_reduce(self, x: NDArray[np.float32]) -> None:
            raise ConnectionError("rank 1 is gone")

    shape = SHAPES[0]
    weights = random_weights(shape)
    shard = make_shard(shape, weights, threads=2)
    x = shard.embed(np.arange(3, dtype=np.uint32), NO_POSITIONS)
    with pytest.raises(ConnectionError, match="rank 1 is gone"):
        shard.step(x, [(3, 0, [0])], [2], Broken())
    got = shard.step(x, [(3, 0, [0])], [2], None).logits[0]
    np.testing.assert_allclose(got, reference_logits(shape, weights, [0, 1, 2])[2], atol=3e-5)
