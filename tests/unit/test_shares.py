"""Shares by memory: they fit, they are found where there is room, and they stay the same."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.converter import open_model
from hearth.root.planning.blueprint import Blueprint, draw
from hearth.root.planning.facts import NodeFacts
from hearth.root.planning.shares import shares_by_memory
from hearth.root.settings import ClusterSettings

MIB = 1 << 20


@given(
    st.lists(st.integers(0, 1 << 40), min_size=1, max_size=8),
    st.integers(0, 1 << 38),
    st.integers(1, 1 << 40),
)
def test_what_is_found_fits(rooms: list[int], fixed: int, total: int) -> None:
    """fixed: what the root needs beside its share, such as the embedding."""

    def needs(shares: tuple[float, ...]) -> list[int]:
        assert min(shares) == 1
        parts = [int(total * share / sum(shares)) for share in shares]
        return [parts[0] + fixed, *parts[1:]]

    shares = shares_by_memory(rooms, needs)
    if shares is not None:
        assert len(shares) == len(rooms)
        assert all(need <= room for need, room in zip(needs(shares), rooms, strict=True))


@given(st.lists(st.integers(64 * MIB, 64 << 30), min_size=1, max_size=8), st.floats(0.05, 0.7))
def test_it_is_found_where_there_is_room_to_spare(rooms: list[int], used: float) -> None:
    """A model of 70 % of all memory, and a root that needs a tenth of its own room anyway."""
    fixed, total = rooms[0] // 10, int(used * (sum(rooms) - rooms[0] // 10))

    def needs(shares: tuple[float, ...]) -> list[int]:
        parts = [int(total * share / sum(shares)) for share in shares]
        return [parts[0] + fixed, *parts[1:]]

    assert shares_by_memory(rooms, needs) is not None


@given(st.lists(st.integers(1 << 26, 1 << 36), min_size=2, max_size=5), st.data())
@settings(max_examples=50)
def test_a_little_less_free_memory_changes_no_share(rooms: list[int], data: st.DataObject) -> None:
    """Unless it falls below one of the four steps from one power of two to the next."""

    def needs(shares: tuple[float, ...]) -> list[int]:
        total = sum(rooms) // 4
        return [int(total * share / sum(shares)) for share in shares]

    coarse = [room >> (room.bit_length() - 3) << (room.bit_length() - 3) for room in rooms]
    other = [data.draw(st.integers(low, room)) for low, room in zip(coarse, rooms, strict=True)]
    assert shares_by_memory(other, needs) == shares_by_memory(rooms, needs)


def blueprint(root: int, **changes: object) -> Blueprint:
    with open_model("random:llama-3-8b", "q40") as model:
        made = draw(model, ClusterSettings(**changes))  # type: ignore[arg-type]
        return replace(made, room=root)


def facts(*rooms: int) -> list[NodeFacts]:
    return [NodeFacts(f"pi{i}", room, f"pi{i}:7717") for i, room in enumerate(rooms, 1)]


def test_a_large_machine_and_small_ones_hold_a_model_together() -> None:
    """24 GiB, and Pis of 1 GiB and 600 MiB, of which each third of 8B would be too much."""
    drawn = blueprint(24 << 30)
    workers = facts(1 << 30, 600 * MIB)
    addresses = [worker.address for worker in workers]
    equal = drawn.plan(addresses)
    assert equal.nodes[2].weight_bytes > 600 * MIB
    assert drawn.misfit(workers) is None
    plan = drawn.plan(addresses)
    drawn.cache_room(plan, workers)  # raises where one has no room
    assert plan.nodes[0].weight_bytes > plan.nodes[1].weight_bytes >= plan.nodes[2].weight_bytes
    (note,) = (note for note in plan.notes if "--shares" in note)
    assert "equal ones do not fit" in note
    # Kept for these workers, and dropped where equal ones fit again.
    assert drawn.plan(addresses) is plan
    richer = facts(24 << 30, 24 << 30)
    assert drawn.misfit(richer) is None
    assert drawn.plan(addresses) is plan  # what fits stays: slices are cached for it


def test_too_little_memory_is_said_and_given_shares_are_kept() -> None:
    drawn = blueprint(24 << 30)
    found = drawn.misfit(facts(1 << 20, 1 << 20))
    assert found is not None
    assert drawn.misfit(facts(1 << 20, 1 << 20)) == found
    given_shares = blueprint(24 << 30, shares=(1.0, 1.0, 1.0), workers=("pi1:7717", "pi2:7717"))
    assert given_shares.misfit(facts(1 << 30, 600 * MIB)) is not None
