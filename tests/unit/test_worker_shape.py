"""Checks of the shapes that a worker is sent: numbers of mixers and feed-forwards out of range."""

from collections.abc import Callable

import pytest

from hearth.common.errors import HearthError, Reason
from hearth.common.types import ACTIVATION, KV, NORM, ROUTER
from hearth.v1 import common_pb2
from hearth.worker import shape


def config(block: common_pb2.Block) -> common_pb2.ShardConfig:
    return common_pb2.ShardConfig(
        hidden_size=64,
        layers=common_pb2.Range(begin=0, end=2),
        vocab=common_pb2.Range(begin=0, end=40),
        norm=NORM["rms"],
        norm_epsilon=1e-5,
        ropes=[common_pb2.Rope(frequencies=[1.0, 0.1, 0.01, 0.001], magnitude=1.0)],
        kinds=[block],
        kind_of_layer=[0, 0],
        embedding_scale=1.0,
        logit_scale=1.0,
        kv_type=KV["f16"],
        page_size=16,
        max_pages=4,
        max_step_tokens=8,
        vocab_size=40,
    )


def feed_forward() -> common_pb2.FeedForward:
    return common_pb2.FeedForward(
        units=common_pb2.Range(begin=0, end=96), activation=ACTIVATION["silu"], gated=True
    )


def plain() -> common_pb2.ShardConfig:
    attention = common_pb2.Attention(
        heads=common_pb2.Range(begin=4, end=8),
        kv_heads=common_pb2.Range(begin=2, end=4),
        key_size=8,
        value_size=8,
        scale=0.3,
        rope=0,
        row_norm=common_pb2.RowNorm(heads=8, kv_heads=4),
        temperature=common_pb2.Temperature(slope=0.1, length=8192),
    )
    inner = feed_forward()
    inner.clamp.CopyFrom(common_pb2.GateClamp(limit=7.0, factor=1.702, offset=1.0))
    block = common_pb2.Block(
        attention=attention, feed_forward=inner, input_norms=True, residual_scale=1.0
    )
    return config(block)


def latent() -> common_pb2.ShardConfig:
    attention = common_pb2.LatentAttention(
        heads=common_pb2.Range(begin=1, end=4),
        query_rank=24,
        kv_rank=48,
        nope_size=16,
        rope_size=16,
        value_size=12,
        scale=0.2,
        rope=0,
        norm_epsilon=1e-6,
    )
    block = common_pb2.Block(
        latent_attention=attention,
        feed_forward=feed_forward(),
        input_norms=True,
        residual_scale=1.0,
    )
    return config(block)


Change = Callable[[common_pb2.Block], object]
BAD_PLAIN: list[tuple[Change, str]] = [
    (lambda b: setattr(b.attention.row_norm, "heads", 7), "heads end at 8, of 7"),
    (lambda b: setattr(b.attention.row_norm, "kv_heads", 3), "kv_heads end at 4, of 3"),
    (lambda b: setattr(b.attention.row_norm, "heads", 10), "10 heads do not divide over 4"),
    (lambda b: setattr(b.attention.row_norm, "heads", 1 << 30), "heads 1073741824 is not within"),
    (lambda b: setattr(b.attention, "head_norm", True), "a norm of each head and one of whole"),
    (lambda b: setattr(b.attention.temperature, "length", 0.0), "length of queries' growth is 0"),
    (lambda b: setattr(b.attention.temperature, "slope", -1.0), "slope of queries' growth is -1"),
    (lambda b: setattr(b.feed_forward.clamp, "limit", 0.0), "the limit of a feed-forward is 0"),
    (lambda b: setattr(b.feed_forward.clamp, "factor", float("nan")), "gate is nan"),
    (lambda b: setattr(b.feed_forward.clamp, "offset", float("inf")), "offset .* is inf"),
    (lambda b: setattr(b.feed_forward, "gated", False), "limits of a gate, and no gate"),
    (lambda b: b.ClearField("attention"), "no mixer"),
]
BAD_LATENT: list[tuple[Change, str]] = [
    (lambda b: setattr(b.latent_attention.heads, "begin", 4), r"heads \[4, 4\) is empty"),
    (lambda b: setattr(b.latent_attention, "kv_rank", 0), "kv_rank 0 is not within"),
    (lambda b: setattr(b.latent_attention, "kv_rank", 4000), "kv_rank 4000 is not within"),
    (lambda b: setattr(b.latent_attention, "query_rank", 1 << 20), "query_rank 1048576 is not"),
    (lambda b: setattr(b.latent_attention, "nope_size", 0), "nope_size 0 is not within"),
    (lambda b: setattr(b.latent_attention, "value_size", 1 << 20), "value_size 1048576 is not"),
    (lambda b: setattr(b.latent_attention, "rope", 1), "rope 1 of 1 ropes"),
    (lambda b: setattr(b.latent_attention, "rope_size", 7), "rope_size 7 has room for fewer"),
    (lambda b: setattr(b.latent_attention, "scale", 0.0), "the scale of attention is 0"),
    (lambda b: setattr(b.latent_attention, "norm_epsilon", 2.0), "norm_epsilon 2"),
]


def check_refused(good: common_pb2.ShardConfig, change: Change, text: str) -> None:
    shape.check_config(good)
    change(good.kinds[0])
    with pytest.raises(HearthError, match=text) as caught:
        shape.check_config(good)
    assert caught.value.reason == Reason.BAD_SHARD


@pytest.mark.parametrize(("change", "text"), BAD_PLAIN)
def test_attention_out_of_range(change: Change, text: str) -> None:
    check_refused(plain(), change, text)


@pytest.mark.parametrize(("change", "text"), BAD_LATENT)
def test_latent_attention_out_of_range(change: Change, text: str) -> None:
    check_refused(latent(), change, text)


def test_q80_wants_whole_blocks_of_the_latent() -> None:
    bad = latent()
    bad.kv_type = KV["q80"]
    shape.check_config(bad)  # 48 + 16 elements
    bad.kinds[0].latent_attention.kv_rank = 47
    with pytest.raises(HearthError, match="divide by 32, not 63"):
        shape.check_config(bad)


def test_the_cache_holds_the_latent_once() -> None:
    """Of a position and layer kv_rank + rope_size numbers of 2 bytes, on every rank."""
    assert shape.kv_page_bytes(latent()) == 2 * 16 * (48 + 16) * 2
    assert shape.kv_page_bytes(plain()) == 2 * 16 * 2 * (8 + 8) * 2


def with_more() -> common_pb2.ShardConfig:
    """Layers with inputs of their own; the second reads the keys of the first."""
    found = plain()
    found.kinds[0].attention.ClearField("row_norm")
    found.kinds[0].attention.value_norm = True
    found.kinds.add().CopyFrom(found.kinds[0])
    second = found.kinds[1]
    second.attention.kv_layer = 0
    second.layer_scale = second.separate_norms = True
    second.experts.CopyFrom(
        common_pb2.Experts(
            count=4,
            used=2,
            expert=feed_forward(),
            scores=ROUTER["softmax"],
            scale=1.0,
            groups=1,
            used_groups=1,
            expert_scales=True,
        )
    )
    found.kind_of_layer[1] = 1
    found.layer_inputs.CopyFrom(
        common_pb2.LayerInputs(
            size=24,
            layers=3,
            activation=ACTIVATION["gelu_tanh"],
            embedding_scale=2.0,
            projection_scale=0.5,
            sum_scale=0.7,
        )
    )
    return found


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: setattr(c.layer_inputs, "layers", 1), "layer_inputs.layers 1 is not within"),
        (lambda c: setattr(c.layer_inputs, "size", 0), "layer_inputs.size 0 is not within"),
        (lambda c: setattr(c.layer_inputs, "size", 1 << 30), "layer_inputs.size 1073741824 is"),
        (lambda c: setattr(c.layer_inputs, "sum_scale", 0.0), "layer_inputs.sum_scale is 0"),
        (lambda c: c.layer_inputs.ClearField("activation"), "unknown activation 0"),
        (lambda c: setattr(c.kinds[1].attention, "kv_layer", 1), "which is not an earlier one"),
        (lambda c: setattr(c.kinds[1].attention, "kv_layer", 9), "which is not an earlier one"),
        (lambda c: setattr(c.kinds[0].attention, "kv_layer", 0), "which is not an earlier one"),
        (lambda c: setattr(c.kinds[0].attention, "key_size", 16), "which has other KV heads"),
        (lambda c: setattr(c.kinds[1].attention.kv_heads, "begin", 3), "has other KV heads"),
        (
            lambda c: c.kinds[1].attention.row_norm.CopyFrom(
                common_pb2.RowNorm(heads=8, kv_heads=4)
            ),
            "with a norm of whole rows",
        ),
        (lambda c: c.kinds[1].ClearField("experts"), "separate norms need a feed-forward"),
        (lambda c: setattr(c.kinds[1], "feed_forward_gate", True), "separate norms need"),
    ],
)
def test_layers_that_depend_on_others_out_of_range(
    change: Callable[[common_pb2.ShardConfig], object], text: str
) -> None:
    bad = with_more()
    shape.check_config(bad)
    change(bad)
    with pytest.raises(HearthError, match=text) as caught:
        shape.check_config(bad)
    assert caught.value.reason == Reason.BAD_SHARD


def test_keys_as_values_have_their_size() -> None:
    bad = plain()
    bad.kinds[0].attention.keys_as_values = True
    shape.check_config(bad)
    bad.kinds[0].attention.value_size = 16
    with pytest.raises(HearthError, match="keys of 8 elements cannot be values of 16"):
        shape.check_config(bad)


def test_rows_hold_the_inputs_of_all_layers() -> None:
    assert shape.row_size(with_more()) == 64 + 3 * 24
    assert shape.sync_size(with_more()) == 2 * 64
    # Of two layers, one with pages: 2 KV heads.
    assert shape.kv_page_bytes(with_more()) == 16 * 2 * (8 + 8) * 2


@pytest.mark.parametrize("good", [plain(), latent(), with_more()])
def test_the_core_takes_what_passes(good: common_pb2.ShardConfig) -> None:
    shape.check_config(good)
    shape.native_config(good)
    assert shape.step_bytes(good) > 8 * 64 * 4
