"""A restarted root gives its workers the ranks that they had, whatever their addresses now."""

from __future__ import annotations

from itertools import permutations

import pytest
from membership_story import Checked

from hearth.root.membership.decisions import Form, Member, Rules
from hearth.root.membership.events import Described, Formed, Found
from hearth.root.membership.peers import PeerState

NAMES = ("hearth-worker-0", "hearth-worker-1", "hearth-worker-2")


def _roomy(workers: tuple[Member, ...]) -> None:
    """Any number of nodes has room."""


def _first(membership: Checked, named: dict[str, str]) -> Form:
    """The decision after all have answered."""
    for address in membership.due(0.0):
        membership.handle(Described(0.0, address, named[address], f"of {address}", 1 << 30))
    decision = membership.decide(1.0, False)
    assert isinstance(decision, Form)
    return decision


@pytest.mark.parametrize("names", list(permutations(NAMES)))
def test_listed_by_a_name_they_are_ranked_by_their_own(names: tuple[str, ...]) -> None:
    named = {f"10.0.0.{i}:7717": name for i, name in enumerate(names)}
    membership = Checked(Rules(most=3, needed=1, static=()), _roomy)
    membership.handle(Found(0.0, "dns", tuple(named)))
    assert [named[address] for address in _first(membership, named).workers] == list(NAMES)
    # One that comes later comes last, whatever its name is.
    membership.handle(Formed(2.0, tuple(sorted(named, key=named.__getitem__))))
    membership.handle(Found(3.0, "dns", (*named, "10.0.0.9:7717")))
    assert [c.address for c in membership.peers][-1] == "10.0.0.9:7717"
    assert [c.state for c in membership.peers][:3] == [PeerState.IN] * 3


def test_a_list_keeps_its_own_order() -> None:
    named = {"b:1": NAMES[1], "c:1": NAMES[2], "a:1": NAMES[0]}
    membership = Checked(Rules(most=3, needed=3, static=tuple(named)), _roomy)
    assert _first(membership, named).workers == tuple(named)
