"""Models with recurrent mixers: cuts, memory and limits that follow from their states."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.common.errors import HearthError
from hearth.converter.blocks import AttentionSpec, BlockSpec, FeedForwardSpec, GatedDeltaSpec
from hearth.converter.errors import ModelError
from hearth.converter.spec import ModelSpec
from hearth.converter.spec_json import spec_from_json, spec_to_json
from hearth.root.cluster.wire import shard_config
from hearth.root.planning.facts import NodeFacts
from hearth.root.planning.layout import Layout
from hearth.root.planning.memory import Room, needed_bytes, room_for
from hearth.root.planning.planner import make_plan, most_nodes
from hearth.root.scheduling.batch import Limits
from hearth.root.settings import ClusterSettings
from hearth.worker.shape import check_config, kv_page_bytes, state_bytes
from hearth.worker.shard import NodeShard

DELTA = GatedDeltaSpec(key_heads=4, group=2, key_size=8, value_size=16, width=4)


def spec_of(delta: GatedDeltaSpec, kind_of_layer: tuple[int, ...] = (0, 0, 1)) -> ModelSpec:
    attention = AttentionSpec(8, 8, 16, 16, 0.25, None)
    return ModelSpec(
        name="test",
        architecture="test",
        hidden_size=32,
        vocab_size=96,
        context_size=512,
        kinds=(BlockSpec(delta, FeedForwardSpec(64)), BlockSpec(attention, FeedForwardSpec(64))),
        kind_of_layer=kind_of_layer,
        ropes=(),
        norm_epsilon=1e-6,
        tied=False,
    )


def limits(max_running: int = 4) -> Limits:
    return Limits(
        context_size=64,
        max_pages=8,
        page_size=16,
        max_running=max_running,
        stateful=True,
        most_drafts=16,
    )


@settings(max_examples=60, deadline=None)
@given(
    tiles=st.integers(1, 5),
    tile=st.integers(1, 3),
    group=st.integers(1, 3),
    key_size=st.integers(1, 9),
    value_size=st.sampled_from([3, 16, 32, 40]),
    width=st.integers(1, 5),
    kind=st.sampled_from(["f32", "q8_0", "q4_k"]),
    data=st.data(),
)
def test_nodes_hold_what_their_shards_expect(
    tiles: int,
    tile: int,
    group: int,
    key_size: int,
    value_size: int,
    width: int,
    kind: str,
    data: st.DataObject,
) -> None:
    delta = GatedDeltaSpec(tiles * tile, group, key_size, value_size, width, tile=tile)
    spec = spec_of(delta)
    assert spec_from_json(spec_to_json(spec)) == spec
    assert most_nodes(spec) == tiles
    nodes = data.draw(st.integers(1, tiles))
    shares = data.draw(st.lists(st.floats(0.1, 10), min_size=nodes, max_size=nodes))

    def tensor_type(name: str) -> str:
        return kind if spec.tensor_shape(name)[1] % (256 if kind == "q4_k" else 32) == 0 else "f32"

    plan = make_plan(spec, tensor_type, Layout.tensor(nodes), shares)
    held = dict.fromkeys(spec.tensor_names(), 0)
    for node in plan.nodes:
        config = shard_config(spec, node, ClusterSettings(kv_type="f32"), limits())
        check_config(config)
        expected = NodeShard(config).expected()
        slices = {
            part.name: (part.rows[1] - part.rows[0], part.columns[1] - part.columns[0])
            for part in node.slices
        }
        assert slices == expected
        for name, (rows, columns) in slices.items():
            held[name] += rows * columns
        assert node.state_bytes(spec) * 4 == state_bytes(config)
        assert node.kv_page_bytes(spec, "f32", 16) == kv_page_bytes(config)
    for name, count in held.items():
        rows, columns = spec.tensor_shape(name)
        whole = name.endswith("norm") or name == "embedding"
        times = nodes if whole and name != "embedding" else 1
        assert count == rows * columns * times, name


def test_states_take_memory_beside_the_pages() -> None:
    spec = spec_of(DELTA)
    plan = make_plan(spec, lambda _: "f32", Layout.tensor(1))
    node = plan.nodes[0]
    page, state = node.kv_page_bytes(spec, "f16", 16), node.state_bytes(spec)
    # What the convolution keeps, the matrices, and a log of 16 rows.
    channels = 2 * 8 + 2 * 16
    assert state == 2 * 4 * 4 * (3 * channels + 2 * 8 * 16 + 16 * (channels + 2 * 2))

    def room(spare: int) -> Room:
        facts = NodeFacts("root", node.weight_bytes + spare)
        return room_for(spec, plan, "f16", 16, 64, 3, 16, [facts])

    # Four pages for each of three sequences, and sixteen states.
    assert room(12 * page + 16 * state) == Room(12, 16)
    assert room(12 * page + 5 * state) == Room(12, 5)
    # Two sequences of full context fit with their states, and a part of a third.
    assert room(8 * page + 2 * state + page) == Room(8 + page // page, 2)
    assert room(4 * page + state) == Room(4, 1)
    assert needed_bytes(node, spec, "f16", 16, 64) == node.weight_bytes + 4 * page + state
    with pytest.raises(HearthError, match="for a sequence's state: use more nodes"):
        room(4 * page + state - 1)


def test_a_model_without_attention_has_no_pages_to_pay_for() -> None:
    spec = spec_of(DELTA, (0, 0))
    plan = make_plan(spec, lambda _: "f32", Layout.tensor(2))
    state = plan.nodes[1].state_bytes(spec)
    facts = [
        NodeFacts(name, node.weight_bytes + 2 * state)
        for name, node in zip(("root", "pi"), plan.nodes, strict=True)
    ]
    assert room_for(spec, plan, "f16", 16, 64, 3, 16, facts) == Room(12, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_heads": 0}, "heads is 0"),
        ({"group": 0}, "heads is 0"),
        ({"key_heads": 2048, "group": 2}, "heads is 4096"),
        ({"key_size": 4096}, "head_size is 4096"),
        ({"value_size": 0}, "head_size is 0"),
        ({"width": 0}, "convolution is 0"),
        ({"width": 1000}, "convolution is 1000"),
        ({"tile": 3}, "4 key heads are not whole tiles of 3"),
        ({"tile": 0}, "4 key heads are not whole tiles of 0"),
        ({"activation": "swish"}, "activation 'swish' is not supported"),
    ],
)
def test_bad_numbers_are_refused(change: dict[str, object], message: str) -> None:
    fields = {name: getattr(DELTA, name) for name in DELTA.__slots__}
    with pytest.raises(ModelError, match=message):
        spec_of(GatedDeltaSpec(**(fields | change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": 0}, "group 0 is not within"),
        ({"group": 1 << 12, "value_size": 1 << 10}, "values has more than"),
        ({"tile": 0}, "tile 0 is not within"),
        ({"tile": 3}, r"key_heads \[0, 4\) are not whole tiles of 3"),
        ({"key_size": 1 << 11}, "key_size 2048 is not within"),
        ({"value_size": 0}, "value_size 0 is not within"),
        ({"width": 300}, "width 300 is not within"),
        ({"activation": 77}, "unknown activation 77"),
    ],
)
def test_a_worker_refuses_bad_shapes(change: dict[str, int], message: str) -> None:
    spec = spec_of(DELTA)
    node = make_plan(spec, lambda _: "f32", Layout.tensor(1)).nodes[0]
    config = shard_config(spec, node, ClusterSettings(), limits())
    for name, value in change.items():
        setattr(config.kinds[0].gated_delta, name, value)
    with pytest.raises(HearthError, match=message) as error:
        check_config(config)
    assert error.value.reason == "BAD_SHARD"
