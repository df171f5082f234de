"""The core's gated delta rule against a plain numpy definition, whole and cut over ranks.

The reference shares nothing with the core: float64 throughout, one position after another, the
state of every head as a matrix.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
from blocks import (
    EPSILON,
    Block,
    Model,
    activate,
    attention,
    load,
    norm,
    rms,
    weights_of,
    whole,
)
from numpy.typing import NDArray
from test_native_shard import Meeting, ThreadLane  # type: ignore[import-not-found]

from hearth import _native

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
PAGE = 4
NO_POSITIONS = np.empty(0, np.uint32)
ATTENTION = Block(heads=6, kv_heads=3, gate=True, head_norm=True, units=36)


@dataclass(frozen=True)
class Delta:
    """A gated delta rule; the names are those of the core's config."""

    key_heads: int = 3
    group: int = 2
    tile: int = 1
    key_size: int = 6
    value_size: int = 10
    width: int = 4
    activation: str = "silu"
    output_norms: bool = False

    def key_head(self, value_head: int) -> int:
        """The key head that a value head reads."""
        tile, within = divmod(value_head, self.tile * self.group)
        return tile * self.tile + within % self.tile


@dataclass(frozen=True)
class Ranks:
    """A model of delta layers and attention, cut over ranks."""

    delta: Delta
    kind_of_layer: tuple[int, ...] = (0, 0, 1, 0)
    hidden: int = 24
    vocab: int = 33
    max_sequences: int = 3
    max_undo: int = 0

    @property
    def model(self) -> Model:
        """Without the delta layers: for the definitions that these share with other blocks."""
        return Model([ATTENTION], hidden=self.hidden, vocab=self.vocab)

    def shard(self, span: tuple[int, int], of: int, threads: int = 1) -> _native.Shard:
        """The parts [begin, end) of `of` of everything that is cut."""
        d, model = self.delta, self.model

        def part(count: int) -> tuple[int, int]:
            return count * span[0] // of, count * span[1] // of

        def tiles(count: int) -> tuple[int, int]:
            begin, end = part(count // d.tile)
            return begin * d.tile, end * d.tile

        feed_forward = _native.FeedForwardConfig(units=part(36))
        delta = _native.GatedDeltaConfig(
            key_heads=tiles(d.key_heads),
            group=d.group,
            tile=d.tile,
            key_size=d.key_size,
            value_size=d.value_size,
            width=d.width,
            activation=d.activation,
        )
        attends = _native.AttentionConfig(
            heads=part(6),
            kv_heads=part(3),
            key_size=8,
            value_size=8,
            scale=ATTENTION.scale,
            rope=0,
            head_norm=True,
            gate=True,
        )
        config = _native.ShardConfig(
            hidden_size=self.hidden,
            layers=(0, len(self.kind_of_layer)),
            kinds=[
                _native.BlockConfig(
                    mixer=delta, feed_forward=feed_forward, output_norms=d.output_norms
                ),
                _native.BlockConfig(mixer=attends, feed_forward=feed_forward),
            ],
            kind_of_layer=list(self.kind_of_layer),
            norm_epsilon=EPSILON,
            ropes=[_native.RopeConfig(frequencies=model.frequencies(0).tolist())],
            kv_type="f32",
            page_size=PAGE,
            max_pages=32,
            max_step_tokens=64,
            max_sequences=self.max_sequences,
            max_undo=self.max_undo,
            embedding=span[0] == 0,
            vocab_size=self.vocab,
            vocab=part(self.vocab),
        )
        return _native.Shard(config, threads=threads)

    def weights(self, seed: int = 0) -> dict[str, F32]:
        weights: dict[str, F32] = weights_of(self.shard((0, 1), 1), seed)
        rng = np.random.default_rng(seed)
        for name, value in weights.items():
            if name.endswith("decay_rate"):  # from slow to fast forgetting
                weights[name] = -np.exp(rng.uniform(-4, 1, value.shape)).astype(np.float32)
        return weights

    def loaded(self, weights: dict[str, F32], threads: int = 1) -> _native.Shard:
        shard = self.shard((0, 1), 1, threads)
        load(shard, weights)
        return shard

    def cut(self, weights: dict[str, F32], span: tuple[int, int], of: int) -> _native.Shard:
        """A rank's shard, with its rows or columns of all weights."""
        d, shard = self.delta, self.shard(span, of)
        begin, end = (d.key_heads // d.tile * each // of * d.tile for each in span)
        first, last = begin * d.group, end * d.group
        for name in shard.expected():
            value, part = weights[name], name.split(".")[-1]
            is_delta = (
                name.startswith("layers.") and self.kind_of_layer[int(name.split(".")[1])] == 0
            )
            sizes = {
                "wq": (begin * d.key_size, end * d.key_size),
                "wv": (first * d.value_size, last * d.value_size),
                "wa": (first, last),
            }
            sizes |= {"wk": sizes["wq"], "wg": sizes["wv"], "wo": sizes["wv"], "wb": sizes["wa"]}
            sizes |= {"decay_rate": sizes["wa"], "decay_bias": sizes["wa"]}
            for conv in "qkv":
                low, high = sizes[f"w{conv}"]
                sizes[f"conv_{conv}"] = low * d.width, high * d.width
            if not is_delta:
                width = value.shape[1 if part == "wo" else 0]
                sizes = dict.fromkeys(sizes, (width * span[0] // of, width * span[1] // of))
            sizes |= dict.fromkeys(("w1", "w3", "w2"), (36 * span[0] // of, 36 * span[1] // of))
            sizes["head"] = self.vocab * span[0] // of, self.vocab * span[1] // of
            if part in sizes:
                low, high = sizes[part]
                columns = part in ("wo", "w2") or value.shape[0] == 1
                value = value[:, low:high] if columns else value[low:high]
            shard.load(name, "f32", np.ascontiguousarray(value))
        return shard


def reference(ranks: Ranks, weights: dict[str, F32], tokens: list[int]) -> F64:
    """Logits after every token: [len(tokens), vocab]."""
    model, d = ranks.model, ranks.delta
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = w["embedding"][tokens]
    for layer, kind in enumerate(ranks.kind_of_layer):
        prefix = f"layers.{layer}."
        own = {n.removeprefix(prefix): v for n, v in w.items() if n.startswith(prefix)}
        read = norm(model, own, "attn_norm", x)
        added = attention(model, ATTENTION, own, read, []) if kind else gated_delta(d, own, read)
        norms = kind == 0 and d.output_norms
        x = x + (norm(model, own, "attn_out_norm", added) if norms else added)
        added = whole(ATTENTION, own, norm(model, own, "ffn_norm", x))
        x = x + (norm(model, own, "ffn_out_norm", added) if norms else added)
    logits: F64 = norm(model, w, "norm", x) @ w["head"].T
    return logits


def gated_delta(d: Delta, w: dict[str, F64], x: F64) -> F64:
    """Position by position, head by head."""
    count, heads = len(x), d.key_heads * d.group

    def convolved(name: str, size: int) -> F64:
        products = x @ w[f"w{name}"].T
        filters = w[f"conv_{name}"].reshape(-1, d.width)
        padded = np.concatenate([np.zeros((d.width - 1, products.shape[1])), products])
        out = np.stack([(padded[p : p + d.width] * filters.T).sum(0) for p in range(count)])
        heads_of: F64 = activate(d.activation, out).reshape(count, -1, size)
        return heads_of

    q, k = convolved("q", d.key_size), convolved("k", d.key_size)
    v, gate = convolved("v", d.value_size), (x @ w["wg"].T).reshape(count, heads, -1)
    q /= np.sqrt((q**2).sum(-1, keepdims=True) + 1e-6) * np.sqrt(d.key_size)
    k /= np.sqrt((k**2).sum(-1, keepdims=True) + 1e-6)
    decay = np.exp(w["decay_rate"] * np.log1p(np.exp(x @ w["wa"].T + w["decay_bias"])))
    beta = 1 / (1 + np.exp(-(x @ w["wb"].T)))
    mixed = np.empty((count, heads, d.value_size))
    for head in range(heads):
        state = np.zeros((d.key_size, d.value_size))
        for p in range(count):
            key = k[p, d.key_head(head)]
            state *= decay[p, head]
            state += np.outer(key, beta[p, head] * (v[p, head] - state.T @ key))
            mixed[p, head] = state.T @ q[p, d.key_head(head)]
    mixed = rms(mixed, w["mixed_norm"][0]) * activate("silu", gate)
    out: F64 = mixed.reshape(count, -1) @ w["wo"].T
    return out


TOKENS = [5, 0, 31, 17, 17, 2, 30, 9, 11, 4, 4, 28, 1, 7, 7, 12, 3, 3, 8, 22, 25]
OTHERS = [4, 28, 1, 32, 6, 9, 14, 2, 2, 18]
CASES = {
    "plain": Ranks(Delta()),
    "value heads by turns": Ranks(Delta(tile=3)),
    "turns of two": Ranks(Delta(key_heads=6, group=3, tile=2)),
    "one value head": Ranks(Delta(group=1)),
    "no convolution": Ranks(Delta(width=1)),
    "a wide convolution": Ranks(Delta(width=7)),
    "whole vectors": Ranks(Delta(key_size=16, value_size=32)),
    "vectors and a rest": Ranks(Delta(key_size=5, value_size=43)),
    "gelu": Ranks(Delta(activation="gelu_tanh")),
    "norms of what is added": Ranks(Delta(output_norms=True)),
    "delta layers only": Ranks(Delta(), kind_of_layer=(0, 0)),
    "a first and last layer of attention": Ranks(Delta(), kind_of_layer=(1, 0, 0, 1)),
}
# f32 against f64: sums of up to 43 terms near 1, over four layers and 21 positions.
TOLERANCE = 3e-4


def pages_of(tokens: list[int]) -> list[int]:
    return list(range(-(-len(tokens) // PAGE)))


def computed(shard: _native.Shard, tokens: list[int], cuts: tuple[int, ...] = ()) -> F32:
    """Logits after every token, in steps that end at `cuts`."""
    logits = []
    for begin, end in zip((0, *cuts), (*cuts, len(tokens)), strict=True):
        x = shard.embed(np.array(tokens[begin:end], np.uint32), NO_POSITIONS)
        rows = list(range(end - begin))
        step = shard.step(x, [(len(rows), begin, pages_of(tokens))], rows, None, [1])
        logits.append(step.logits)
    return np.concatenate(logits)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (6,), (17,), tuple(range(1, len(TOKENS)))])
def test_the_delta_rule_is_as_defined(name: str, cuts: tuple[int, ...]) -> None:
    ranks = CASES[name]
    weights = ranks.weights(len(name))
    expected = reference(ranks, weights, TOKENS)
    assert np.abs(expected).max() > 0.1
    for threads in (1, 5):
        got = computed(ranks.loaded(weights, threads), TOKENS, cuts)
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def test_each_feature_matters() -> None:
    """The definition with another number gives other logits: the test above would see it."""
    ranks = CASES["plain"]
    weights = ranks.weights(1)
    expected = reference(ranks, weights, TOKENS)
    for other in ({"activation": "gelu_tanh"}, {"tile": 3}):
        delta = replace(ranks.delta, **other)
        assert np.abs(reference(Ranks(delta), weights, TOKENS) - expected).max() > 1e-2
    for part in ("wa", "wb", "wg", "conv_q", "conv_k", "conv_v", "decay_rate", "decay_bias"):
        changed = {n: v * 2 if n.endswith(part) else v for n, v in weights.items()}
        assert np.abs(reference(ranks, changed, TOKENS) - expected).max() > 1e-2


@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
@pytest.mark.parametrize("name", CASES)
def test_all_kernels(name: str, instruction_set: str) -> None:
    ranks = CASES[name]
    weights = ranks.weights(7)
    best = _native.instruction_set()
    _native.set_instruction_set(instruction_set)
    try:
        got = computed(ranks.loaded(weights, 2), TOKENS, (6,))
    finally:
        _native.set_instruction_set(best)
    expected = reference(ranks, weights, TOKENS)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("spans", [((0, 2), (2, 3)), ((0, 1), (1, 3)), ((0, 1), (1, 2), (2, 3))])
@pytest.mark.parametrize("name", ["plain", "turns of two", "norms of what is added"])
def test_ranks_have_key_heads(name: str, spans: tuple[tuple[int, int], ...]) -> None:
    """Equal and unequal parts, two sequences a batch, prompts in pieces."""
    ranks = CASES[name]
    weights = ranks.weights(3)
    shards = [ranks.cut(weights, span, 3) for span in spans]
    first = [(5, 0, [3, 4, 5, 6, 7, 8]), (4, 0, [0, 1, 2])]
    got = step_of_all(shards, TOKENS[:5] + OTHERS[:4], first, [0, 2])
    second = [(6, 4, [0, 1, 2]), (16, 5, [3, 4, 5, 6, 7, 8])]
    rest = step_of_all(shards, OTHERS[4:] + TOKENS[5:], second, [2, 0])
    a, b = reference(ranks, weights, TOKENS), reference(ranks, weights, OTHERS)
    expected = np.concatenate([a[:5], b[:4], b[4:], a[5:]])
    np.testing.assert_allclose(np.concatenate([got, rest]), expected, rtol=0, atol=TOLERANCE)


def step_of_all(
    shards: list[_native.Shard],
    tokens: list[int],
    sequences: list[tuple[int, int, list[int]]],
    slots: list[int],
) -> F32:
    """Logits of all rows of one step of all ranks."""
    x = shards[0].embed(np.array(tokens, np.uint32), NO_POSITIONS)
    meeting = Meeting(len(shards))

    def work(rank: int) -> F32:
        lane = ThreadLane(meeting, rank)
        rows = list(range(len(tokens)))
        logits: F32 = shards[rank].step(x, sequences, rows, lane, slots).logits
        return logits

    with ThreadPoolExecutor(len(shards)) as pool:
        return np.concatenate(list(pool.map(work, range(len(shards)))), axis=1)


def test_bits_do_not_depend_on_batch_threads_or_kernels() -> None:
    """The same sequence gives the same bits alone, in pieces, in company, and with more threads."""
    ranks = CASES["vectors and a rest"]
    weights = ranks.weights(5)
    expected = computed(ranks.loaded(weights), TOKENS)
    np.testing.assert_array_equal(computed(ranks.loaded(weights, 3), TOKENS, (3, 4, 9)), expected)
    shard = ranks.loaded(weights, 2)
    both = [(21, 0, [1, 2, 3, 4, 5, 6]), (10, 0, [0, 7, 8])]
    x = shard.embed(np.array(TOKENS + OTHERS, np.uint32), NO_POSITIONS)
    got = shard.step(x, both, list(range(31)), None, [2, 0]).logits
    np.testing.assert_array_equal(got[:21], expected)


def test_a_slot_serves_one_sequence_after_another() -> None:
    """A sequence at position 0 starts from nothing, whatever its slot held; so after a release."""
    ranks = CASES["plain"]
    weights = ranks.weights(2)
    shard = ranks.loaded(weights)
    expected = computed(shard, TOKENS)
    assert shard.kv_bytes == 6 * page_bytes(ranks) + slot_bytes(ranks)
    computed(shard, OTHERS)
    np.testing.assert_array_equal(computed(shard, TOKENS, (2, 11)), expected)
    shard.release_pages(1)
    assert shard.kv_bytes == page_bytes(ranks) + slot_bytes(ranks)
    shard.release_pages(0)
    assert shard.kv_bytes == 0
    np.testing.assert_array_equal(computed(shard, TOKENS), expected)


def test_a_copied_state_continues_as_the_original() -> None:
    ranks = CASES["plain"]
    weights = ranks.weights(2)
    shard = ranks.loaded(weights)
    expected = computed(shard, TOKENS)
    x = shard.embed(np.array(TOKENS, np.uint32), NO_POSITIONS)
    pages = [0, 1, 2, 3, 4, 5]
    shard.step(x[: 2 * PAGE], [(2 * PAGE, 0, pages)], [], None, [0])
    shard.copy_state(0, 2, 2 * PAGE)
    for _ in range(2):  # the copy stays, while the sequence goes on
        shard.copy_state(2, 1, 2 * PAGE)
        rows = len(TOKENS) - 2 * PAGE
        spans = [(rows, 2 * PAGE, pages)]
        got = shard.step(x[2 * PAGE :], spans, list(range(rows)), None, [1]).logits
        np.testing.assert_array_equal(got, expected[2 * PAGE :])


def test_states_that_are_not_there_are_not_copied() -> None:
    ranks = CASES["plain"]
    shard = ranks.loaded(ranks.weights(2))
    with pytest.raises(ValueError, match="slot 0 does not hold the state after 0 positions"):
        shard.copy_state(0, 1, 0)
    computed(shard, TOKENS)
    with pytest.raises(ValueError, match="slot 0 does not hold the state after 3 positions"):
        shard.copy_state(0, 1, 3)
    for source, target in ((0, 99), (99, 0)):
        with pytest.raises(ValueError, match="slot 99 of"):
            shard.copy_state(source, target, len(TOKENS))


def page_bytes(ranks: Ranks) -> int:
    return ranks.kind_of_layer.count(1) * 3 * _native.kv_head_bytes("f32", 8, 8, PAGE)


def slot_bytes(ranks: Ranks) -> int:
    d = ranks.delta
    each = _native.gated_delta_bytes(d.group, d.key_size, d.value_size, d.width, ranks.max_undo)
    channels = 2 * d.key_size + d.group * d.value_size
    log = ranks.max_undo * (channels + 2 * d.group)
    assert each == 4 * ((d.width - 1) * channels + d.group * d.key_size * d.value_size + log)
    return ranks.kind_of_layer.count(0) * d.key_heads * each


def test_a_sequence_goes_on_where_its_state_is() -> None:
    """A state cannot be taken back, nor begin in the middle: such a step changes nothing."""
    ranks = CASES["plain"]
    weights = ranks.weights(2)
    shard = ranks.loaded(weights)
    expected = computed(ranks.loaded(weights), TOKENS[:8])
    x = shard.embed(np.array(TOKENS[:4], np.uint32), NO_POSITIONS)

    def step(position: int, slots: list[int]) -> F32:
        logits: F32 = shard.step(x, [(4, position, [0, 1])], [3], None, slots).logits
        return logits

    with pytest.raises(
        ValueError, match="slot 1 has no state, its sequence goes on from position 4"
    ):
        step(4, [1])
    step(0, [1])
    with pytest.raises(ValueError, match=r"the state after 4 positions, .* from position 3"):
        step(3, [1])
    with pytest.raises(ValueError, match="slot 3 of 3"):
        step(0, [3])
    with pytest.raises(ValueError, match="2 slots for 1 sequences"):
        step(0, [1, 2])
    two = np.concatenate([x, x])
    with pytest.raises(ValueError, match="slot 1 has two sequences"):
        shard.step(two, [(4, 4, [0, 1]), (4, 0, [2])], [], None, [1, 1])
    x = shard.embed(np.array(TOKENS[4:8], np.uint32), NO_POSITIONS)
    np.testing.assert_array_equal(step(4, [1])[0], expected[7])


def test_a_failed_step_leaves_no_state() -> None:
    class Broken(_native.Lane):
        def all_reduce(self, x: F32) -> None:
            raise ConnectionError("rank 1 is gone")

    ranks = CASES["plain"]
    weights = ranks.weights(2)
    shard = ranks.loaded(weights)
    expected = computed(shard, TOKENS)
    x = shard.embed(np.array(TOKENS[:4], np.uint32), NO_POSITIONS)
    shard.step(x, [(4, 0, [0, 1])], [], None, [1])
    with pytest.raises(ConnectionError, match="rank 1 is gone"):
        shard.step(x, [(4, 4, [0, 1])], [], Broken(), [1])
    with pytest.raises(ValueError, match="slot 1 has no state"):
        shard.step(x, [(4, 4, [0, 1])], [], None, [1])
    np.testing.assert_array_equal(computed(shard, TOKENS), expected)


@pytest.mark.parametrize("name", CASES)
def test_drafts_are_taken_back(name: str) -> None:
    """Steps whose last rows are other tokens, of which the next ones keep any number."""
    ranks = replace(CASES[name], max_undo=8)
    weights = ranks.weights(len(name))
    expected = computed(replace(ranks, max_undo=0).loaded(weights), TOKENS)
    random = np.random.default_rng(len(name))
    for threads in (1, 3):
        shard = ranks.loaded(weights, threads)
        end = settled = 0  # known tokens that were computed; and those that stay
        while end < len(TOKENS):
            # Some known rows, of which the step may be wrong, then wrong ones.
            begin = int(random.integers(settled, end + 1))
            known = int(random.integers(1, min(6, len(TOKENS) - begin) + 1))
            wrong = int(random.integers(0, 5))
            most = min(8, begin + known + wrong - settled)
            undo = int(random.integers(min(wrong, most), most + 1))
            step = TOKENS[begin : begin + known] + [32] * wrong
            x = shard.embed(np.array(step, np.uint32), NO_POSITIONS)
            got = shard.step(
                x,
                [(len(step), begin, pages_of([*TOKENS, *[0] * 8]))],
                list(range(known)),
                None,
                [1],
                [undo],
            ).logits
            np.testing.assert_array_equal(got, expected[begin : begin + known])
            end, settled = begin + known, begin + len(step) - undo
        assert shard.kv_bytes == shard.kv_pages * page_bytes(ranks) + slot_bytes(ranks)


def test_a_state_with_a_log_is_copied_and_kept() -> None:
    """Up to any position of its log; the copy can go back as far as the original."""
    ranks = replace(CASES["plain"], max_undo=6)
    weights = ranks.weights(4)
    shard, other = ranks.loaded(weights), ranks.loaded(weights)
    expected = computed(shard, TOKENS)
    pages = pages_of(TOKENS)
    x = shard.embed(np.array(TOKENS, np.uint32), NO_POSITIONS)
    for each in (shard, other):
        each.step(x[:12], [(12, 0, pages)], [], None, [0], [5])
    for position in (7, 9, 12):
        shard.copy_state(0, 2, position)
        saved = shard.read_state(0, position)
        assert saved.shape == (shard.state_bytes,) == (4 + slot_bytes(ranks),)
        other.write_state(1, position, saved)
        for back in (0, min(2, position - 7)):
            for one, slot in ((shard, 2), (other, 1)):
                begin = position - back
                rest = [(len(TOKENS) - begin, begin, pages)]
                got = one.step(x[begin:], rest, [0, 3], None, [slot], [6]).logits
                np.testing.assert_array_equal(got, expected[[begin, begin + 3]])
                if one is shard:
                    shard.copy_state(0, 2, position)
                else:
                    other.write_state(1, position, saved)
        with (
            pytest.raises(ValueError, match=f"the states after 7 to {position} positions")
            if (position > 7)
            else pytest.raises(ValueError, match="the state after 7 positions")
        ):
            shard.step(x[:3], [(3, position + 1, pages)], [], None, [2])
    for position in (6, 13):
        with pytest.raises(ValueError, match=f"hold the state after {position} positions"):
            shard.copy_state(0, 2, position)
        with pytest.raises(ValueError, match=f"hold the state after {position} positions"):
            shard.read_state(0, position)


def test_going_back_too_far_is_refused() -> None:
    ranks = replace(CASES["plain"], max_undo=4)
    shard = ranks.loaded(ranks.weights(4))
    x = shard.embed(np.array(TOKENS, np.uint32), NO_POSITIONS)
    pages = pages_of(TOKENS)
    for rows, undo, problem in ((10, 5, "5 of 10 positions, at most 4"), (3, 4, "4 of 3")):
        with pytest.raises(ValueError, match=f"slot 1 is to go back {problem}"):
            shard.step(x[:rows], [(rows, 0, pages)], [], None, [1], [undo])
    shard.step(x[:10], [(10, 0, pages)], [], None, [1], [2])
    # Behind what is settled, after 8 positions.
    with pytest.raises(ValueError, match="slot 1 is to go back 4 of 3"):
        shard.step(x[9:11], [(2, 9, pages)], [], None, [1], [4])
    shard.step(x[9:11], [(2, 9, pages)], [], None, [1], [3])
    with pytest.raises(ValueError, match="2 counts of undo for 1 sequences"):
        shard.step(x[:3], [(3, 0, pages)], [], None, [1], [1, 1])
    # A state whose log would be longer than a log.
    saved = shard.read_state(1, 10)
    for length, position in ((5, 10), (3, 2)):
        saved[:4] = np.frombuffer(np.uint32(length).tobytes(), np.uint8)
        with pytest.raises(ValueError, match=f"{position} positions with {length} of at most 4"):
            shard.write_state(1, position, saved)
    with pytest.raises(ValueError, match="max_undo is 17"):
        replace(ranks, max_undo=17).loaded(ranks.weights(4))


@pytest.mark.parametrize("type", ["q80", "q40"])
def test_quantized_weights(type: str) -> None:
    """Heads of whole blocks and of others, beside layers of attention."""
    for value_size in (32, 48):
        ranks = Ranks(Delta(key_heads=4, key_size=16, value_size=value_size), hidden=64)
        if value_size == 48:
            ranks = Ranks(Delta(key_heads=2, key_size=16, value_size=value_size), hidden=64)
        weights = ranks.weights(5)
        shard, dequantized = ranks.shard((0, 1), 1, 2), {}
        for name, value in weights.items():
            if value.shape[0] == 1 or value.shape[1] % 32:
                shard.load(name, "f32", value)
                dequantized[name] = value
            else:
                data = _native.quantize(value, type)
                shard.load(name, type, data)
                dequantized[name] = _native.dequantize(data, type, value.shape[1])
        got = computed(shard, TOKENS, (9,))
        expected = reference(ranks, dequantized, TOKENS)
        # Activations of 8 bits, over four layers and a state that keeps their errors.
        assert np.abs(got - expected).max() < 0.15 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_heads": (0, 0)}, "key_heads is 0"),
        ({"key_heads": (1, 3), "tile": 2}, r"key_heads \[1, 3\) are not whole tiles of 2"),
        ({"group": 0}, "value heads of a key head is 0"),
        ({"group": 2**40}, "value heads of a key head is"),
        ({"tile": 0}, "key heads of a tile is 0"),
        ({"key_size": 0}, "key_size is 0"),
        ({"value_size": 2**20}, "value_size is 1048576"),
        ({"width": 0}, "positions of a convolution is 0"),
        ({"width": 1000}, "positions of a convolution is 1000"),
        ({"activation": "relu"}, "activation 'relu'"),
        ({"max_sequences": 0}, "max_sequences is 0"),
    ],
)
def test_bad_shapes_are_refused(change: dict[str, object], message: str) -> None:
    shape = {"key_heads": (0, 2), "group": 2, "key_size": 4, "value_size": 4, "width": 4}
    shape |= {name: value for name, value in change.items() if name != "max_sequences"}
    with pytest.raises(ValueError, match=message):
        _native.Shard(
            _native.ShardConfig(
                hidden_size=8,
                layers=(0, 1),
                kinds=[
                    _native.BlockConfig(
                        mixer=_native.GatedDeltaConfig(**shape),  # type: ignore[arg-type]
                        feed_forward=_native.FeedForwardConfig(units=(0, 8)),
                    )
                ],
                kind_of_layer=[0],
                norm_epsilon=EPSILON,
                ropes=[],
                kv_type="f32",
                page_size=PAGE,
                max_pages=4,
                max_step_tokens=8,
                max_sequences=int(str(change.get("max_sequences", 1))),
                embedding=False,
                vocab_size=1,
                vocab=(0, 0),
            ),
            threads=1,
        )


def test_pages_and_states_go_on_where_they_are_brought_back() -> None:
    """As after a restart: another shard of the same config gets the bytes of pages and state."""
    ranks = CASES["plain"]
    weights = ranks.weights(2)
    shard, other = ranks.loaded(weights), ranks.loaded(weights)
    expected = computed(ranks.loaded(weights), TOKENS)
    x = shard.embed(np.array(TOKENS, np.uint32), NO_POSITIONS)
    shard.step(x[: 2 * PAGE], [(2 * PAGE, 0, [0, 1])], [], None, [0])
    assert shard.state_bytes == slot_bytes(ranks)
    state = shard.read_state(0, 2 * PAGE)
    assert (state.dtype, state.shape) == (np.uint8, (shard.state_bytes,))
    other.write_state(1, 2 * PAGE, state)
    for page in (0, 1):
        content = shard.read_page(page)
        assert (content.dtype, content.shape) == (np.uint8, (shard.page_bytes,))
        other.write_page(page + 3, content.tobytes())
    rows = len(TOKENS) - 2 * PAGE
    pages = [3, 4, 0, 1, 2, 5]
    spans = [(rows, 2 * PAGE, pages)]
    got = other.step(x[2 * PAGE :], spans, list(range(rows)), None, [1]).logits
    np.testing.assert_array_equal(got, expected[2 * PAGE :])


def test_pages_and_states_that_are_not_there_are_refused() -> None:
    ranks = CASES["plain"]
    shard = ranks.loaded(ranks.weights(2))
    computed(shard, TOKENS)
    for page in (7, 1 << 20):
        with pytest.raises(ValueError, match=f"page {page} has no content"):
            shard.read_page(page)
    with pytest.raises(ValueError, match="of a KV cache of"):
        shard.write_page(1 << 20, np.zeros(shard.page_bytes, np.uint8))
    with pytest.raises(ValueError, match=f"3 bytes for a page of {shard.page_bytes}"):
        shard.write_page(0, b"abc")
    with pytest.raises(ValueError, match="does not hold the state after 5 positions"):
        shard.read_state(0, 5)
    with pytest.raises(ValueError, match="does not hold the state"):
        shard.read_state(1 << 20, 5)
    with pytest.raises(ValueError, match=f"3 bytes for a state of {shard.state_bytes}"):
        shard.write_state(0, 5, b"abc")
    with pytest.raises(ValueError, match="slot 1048576 of"):
        shard.write_state(1 << 20, 5, np.zeros(shard.state_bytes, np.uint8))
