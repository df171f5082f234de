"""A restarted root gives its workers the ranks that they had, whatever their addresses now."""

from __future__ import annotations

from itertools import permutations

import pytest

from hearth.root.membership.candidates import Form, Member, Rules, State
from hearth.root.membership.membership import Membership

NAMES = ("hearth-worker-0", "hearth-worker-1", "hearth-worker-2")


def _roomy(workers: tuple[Member, ...]) -> None:
    """Any number of nodes has room."""


def _first(membership: Membership, named: dict[str, str]) -> Form:
    """The decision after all have answered."""
    for address in membership.due(0.0):
        membership.described(address, named[address], f"of {address}", 1 << 30, 0.0)
    decision = membership.decide(1.0, False)
    assert isinstance(decision, Form)
    return decision


@pytest.mark.parametrize("names", list(permutations(NAMES)))
def test_listed_by_a_name_they_are_ranked_by_their_own(names: tuple[str, ...]) -> None:
    named = {f"10.0.0.{i}:7717": name for i, name in enumerate(names)}
    membership = Membership(Rules(most=3, needed=1, static=()), _roomy)
    membership.found("dns", named, 0.0)
    assert [named[address] for address in _first(membership, named).workers] == list(NAMES)
    # One that comes later comes last, whatever its name is.
    membership.formed(tuple(sorted(named, key=named.__getitem__)), 2.0)
    membership.found("dns", [*named, "10.0.0.9:7717"], 3.0)
    assert [c.address for c in membership.candidates][-1] == "10.0.0.9:7717"
    assert [c.state for c in membership.candidates][:3] == [State.IN] * 3


def test_a_list_keeps_its_own_order() -> None:
    named = {"b:1": NAMES[1], "c:1": NAMES[2], "a:1": NAMES[0]}
    membership = Membership(Rules(most=3, needed=3, static=tuple(named)), _roomy)
    assert _first(membership, named).workers == tuple(named)
