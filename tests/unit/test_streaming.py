"""Which layers lie on disk where memory is too small, and what that costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.common.errors import HearthError, Reason
from hearth.common.types import DISK_SEATS
from hearth.converter import open_model
from hearth.root.planning.catalogue import CATALOGUE
from hearth.root.planning.facts import NodeFacts
from hearth.root.planning.layout import Layout
from hearth.root.planning.memory import Room, needed_bytes, room_for
from hearth.root.planning.plan import Plan
from hearth.root.planning.planner import make_plan
from hearth.root.planning.predict import Choices, Predictor
from hearth.root.planning.streaming import (
    disk_bytes,
    held_bytes,
    layer_bytes,
    least_held_bytes,
    to_disk,
)

SIZES = ("f16", 32, 256)


def plan_of(name: str = "random:llama-3.2-1b", nodes: int = 1) -> Plan:
    with open_model(name) as model:
        return make_plan(model.spec, model.tensor_type, Layout.tensor(nodes), (1.0,) * nodes)


PLAN = plan_of()
NODE = PLAN.nodes[0]


def test_a_node_with_enough_memory_has_nothing_on_disk() -> None:
    assert to_disk(NODE, NODE.weight_bytes) == NODE
    assert held_bytes(NODE) == NODE.weight_bytes
    assert disk_bytes(NODE) == 0


@given(st.floats(0, 1))
def test_as_few_layers_as_necessary_are_on_disk(part: float) -> None:
    least = least_held_bytes(NODE)
    memory = int(least + part * (NODE.weight_bytes - least))
    found = to_disk(NODE, memory)
    assert found is not None
    assert held_bytes(found) <= memory
    sizes = layer_bytes(found)
    fewer = len(found.disk_layers) - 1
    if fewer > DISK_SEATS:
        # Layers of this model are equally large.
        assert held_bytes(found) + sizes[0] > memory
    # Evenly spread: gaps differ by one at most.
    gaps = {b - a for a, b in zip(found.disk_layers, found.disk_layers[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert sum(sizes.values()) < found.weight_bytes  # embedding, head and vectors stay


def test_less_than_two_layers_and_the_rest_is_too_little() -> None:
    assert to_disk(NODE, least_held_bytes(NODE) - 1) is None


def test_room_of_a_node_whose_weights_do_not_fit() -> None:
    with open_model("random:llama-3.2-1b") as model:
        spec = model.spec
    page = NODE.kv_page_bytes(spec, *SIZES[:2])
    one = needed_bytes(NODE, spec, *SIZES)
    assert one == NODE.weight_bytes + 8 * page
    least = needed_bytes(NODE, spec, *SIZES, on_disk=True)
    assert least == least_held_bytes(NODE) + 8 * page

    def room(memory: int, *, on_disk: bool) -> Room:
        return room_for(spec, PLAN, *SIZES, 4, 16, [NodeFacts("root", memory)], on_disk=on_disk)

    # What fits has as much room as ever.
    assert room(one + 8 * page, on_disk=True) == room(one + 8 * page, on_disk=False)
    # Four sequences read the same weights: their cache may take an eighth of the memory.
    assert 32 * page < one // 8
    assert room(one - 1, on_disk=True) == Room(32, 16)
    assert room(least + 16 * page, on_disk=True) == Room(24, 16)
    with pytest.raises(HearthError, match="of memory for its shard") as error:
        room(one - 1, on_disk=False)
    assert error.value.reason == Reason.OUT_OF_MEMORY
    assert room(least, on_disk=True) == Room(8, 16)
    with pytest.raises(HearthError, match="of memory for its shard"):
        room(least - 1, on_disk=True)


def test_a_step_takes_as_long_as_the_disk() -> None:
    with open_model("random:llama-3.2-1b") as model:
        spec = model.spec
    machine = CATALOGUE["pi5"]
    kept = Predictor(spec, Choices(context=256)).predict(PLAN, Layout.tensor(1), (1.0,), [machine])
    small = replace(machine, memory_bytes=NODE.weight_bytes // 2, disk_bandwidth=4e8)
    predictor = Predictor(spec, Choices(context=256, weights_on="disk"))
    found = predictor.predict(PLAN, Layout.tensor(1), (1.0,), [small])
    assert found.fits
    assert found.limit == "disk"
    assert found.memory_bytes[0] < small.memory_bytes
    cache = 4 * (needed_bytes(NODE, spec, "f16", 32, 256) - NODE.weight_bytes)
    there = to_disk(NODE, small.memory_bytes - cache)
    assert there is not None
    assert found.node_seconds[0] == pytest.approx(disk_bytes(there) / 4e8)
    assert found.decode < kept.decode
    # A disk of unknown speed helps nobody.
    unknown = replace(small, disk_bandwidth=0.0)
    assert not predictor.predict(PLAN, Layout.tensor(1), (1.0,), [unknown]).fits
    # Where memory is large enough, nothing changes.
    assert predictor.predict(PLAN, Layout.tensor(1), (1.0,), [machine]).decode == kept.decode
