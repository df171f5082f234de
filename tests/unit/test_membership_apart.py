"""Workers that do not reach each other, though the root reaches both: who is left out, and when."""

from __future__ import annotations

import pytest
from membership_story import GIB, Story, needs, serving

from hearth.root.membership.apart import ROOT
from hearth.root.membership.choosing import Chooser
from hearth.root.membership.decisions import Rules, Serve, Wait
from hearth.root.membership.events import Found, Lost
from hearth.root.membership.peers import Peer, PeerState


def test_a_connection_that_breaks_once_moves_nobody() -> None:
    story = serving("a:1", "b:1")
    story.part("a:1", "b:1").apart.clear()
    story.run(1)
    assert story.formed[1:] == [("a:1", "b:1")]


def test_of_two_that_stay_apart_the_later_one_is_left_out() -> None:
    story = serving("a:1", "b:1").part("a:1", "b:1")
    story.run(15)
    assert story.attempts == [("a:1", "b:1")]
    assert story.formed[1:] == [("a:1",)]
    assert story.of("b:1") == (PeerState.READY, "it and worker a (a:1) do not reach each other")


def test_they_are_tried_again_less_and_less_often() -> None:
    story = serving("a:1", "b:1").part("a:1", "b:1")
    story.run(3600)
    assert story.membership.serving == ("a:1",)
    # At 1 min, then 2, 4 and 8 later, then every 10: about 8 in an hour, and not hundreds.
    assert 4 < len(story.attempts) < 12
    story.apart.clear()
    story.run(620)
    assert story.membership.serving == ("a:1", "b:1")


def test_a_connection_that_opens_and_breaks_at_once_is_apart_too() -> None:
    """As where small packets pass and large ones do not."""
    story = serving("a:1", "b:1")
    for _ in range(2):
        story.part("a:1", "b:1").apart.clear()
        story.run(21)
    assert story.formed[1:] == [("a:1", "b:1"), ("a:1",)]


def test_one_that_breaks_now_and_then_is_not() -> None:
    story = serving("a:1", "b:1")
    for _ in range(5):
        story.run(100)
        story.part("a:1", "b:1").apart.clear()
    story.run(1)
    assert set(story.formed) == {("a:1", "b:1")}


@pytest.mark.parametrize("lonely", ["a:1", "b:1", "c:1"])
def test_the_one_that_reaches_nobody_is_left_out(lonely: str) -> None:
    story = serving("a:1", "b:1", "c:1")
    others = tuple(a for a in ("a:1", "b:1", "c:1") if a != lonely)
    for other in others:
        story.apart.add(frozenset((lonely, other)))
    story.part(lonely, others[0]).run(60)
    assert story.membership.serving == others
    assert len(story.attempts) <= 3


def test_the_one_without_which_there_is_room_is_left_out() -> None:
    """a has the memory for half of the model, b has not."""
    story = Story("a:1", "b:1", fit=needs(6 * GIB, 3 * GIB))
    story.start("a:1", room=2 * GIB).start("b:1", room=3 * GIB).run(5)
    story.part("a:1", "b:1").run(15)
    assert story.formed == [("a:1", "b:1"), ("b:1",)]


def test_where_both_are_needed_they_are_tried_all_the_same() -> None:
    story = serving("a:1", "b:1", fit=needs(3 * GIB, GIB)).part("a:1", "b:1")
    decision = story.run(300)
    assert isinstance(decision, Wait)
    assert "do not reach each other" in decision.why
    assert 10 < len(story.attempts) < 30
    story.apart.clear()
    story.run(15)
    assert story.formed[1:] == [("a:1", "b:1")]


def test_a_newcomer_that_does_not_reach_a_member_disturbs_less_and_less() -> None:
    story = serving("a:1")
    story.start("b:1").part("a:1", "b:1")
    story.membership.handle(Found(story.now, "dns", ("b:1",)))
    story.run(600)
    assert story.membership.serving == ("a:1",)
    assert len(story.attempts) < 8
    assert isinstance(story.decide(), Serve)


def test_at_the_start_who_is_needed_is_waited_for() -> None:
    story = Story(needed=2).start("a:1", "b:1").part("a:1", "b:1")
    story.membership.handle(Found(0.0, "dns", ("a:1", "b:1")))
    decision = story.run(60)
    assert isinstance(decision, Wait)
    assert decision.why == "b (b:1): it and worker a (a:1) do not reach each other"
    story.apart.clear()
    story.run(60)
    assert story.formed == [("a:1", "b:1")]


def test_at_the_start_who_is_not_needed_may_be_left_out() -> None:
    story = Story(needed=1).start("a:1", "b:1").part("a:1", "b:1")
    story.membership.handle(Found(0.0, "dns", ("a:1", "b:1")))
    story.run(60)
    assert story.membership.serving == ("a:1",)


def test_one_that_the_root_does_not_reach_over_the_mesh_is_left_out() -> None:
    """It costs no more than two workers that do not reach each other."""
    story = serving("a:1", "b:1").part("a:1", ROOT)
    story.run(15)
    assert story.attempts == [("a:1", "b:1")]
    assert story.formed[1:] == [("b:1",)]
    state, reason = story.of("a:1")
    assert state is PeerState.READY
    assert "the root reaches it by gRPC, and its mesh port not" in reason
    story.run(3600)
    assert 4 < len(story.attempts) < 12
    story.apart.clear()
    story.run(620)
    assert story.membership.serving == ("a:1", "b:1")


@pytest.mark.parametrize("other", [ROOT, "b:1"])
def test_a_mesh_that_breaks_while_it_serves_is_explained_by_its_cause(other: str) -> None:
    """Both are connected, so no advice about ports: a cable or a switch damages data."""
    story = serving("a:1", "b:1")
    for _ in range(2):
        assert story.membership.serving == ("a:1", "b:1")
        cause = "rank 1 sent bytes that arrived changed"
        story.membership.handle(Lost(story.now, "a:1", cause, apart_from=other))
        story.run(5)
    out = "a:1" if other == ROOT else "b:1"
    assert story.membership.serving == (("b:1",) if other == ROOT else ("a:1",))
    state, reason = story.of(out)
    assert state is PeerState.READY
    assert reason.endswith("broke again and again: rank 1 sent bytes that arrived changed")
    assert "port" not in reason


def test_one_apart_from_the_root_that_is_needed_is_tried_all_the_same() -> None:
    story = serving("a:1", "b:1", fit=needs(3 * GIB, GIB)).part("a:1", ROOT)
    assert isinstance(story.run(300), Wait)
    assert 10 < len(story.attempts) < 40
    story.apart.clear()
    story.run(15)
    assert story.formed[1:] == [("a:1", "b:1")]


def test_one_apart_from_the_root_makes_no_other_suspect() -> None:
    story = serving("a:1", "b:1", "c:1").part("a:1", ROOT)
    story.run(15)
    assert story.membership.serving == ("b:1", "c:1")
    story.part("b:1", ROOT).apart.discard(frozenset(("b:1", ROOT)))  # once, as any may
    story.run(1)
    assert story.membership.serving == ("b:1", "c:1")


def test_changing_addresses_fill_no_memory() -> None:
    """The latest pairs, and the latest clusters formed before, are remembered."""
    chooser = Chooser(Rules(most=3, needed=1), lambda workers: None)
    for n in range(2000):
        chooser.formed((f"a:{n}", "b:1"))
        chooser.apart.broke(f"a:{n}", "b:1", 0.0)
        chooser.apart.broke("c:1", "b:1", 0.0)
    assert len(chooser._formed_before) <= 256
    assert len(chooser.apart._pairs) <= 1024
    assert chooser.known([Peer("a:1999", 0), Peer("b:1", 1)])
    assert not chooser.known([Peer("a:0", 0), Peer("b:1", 1)])
    # The pair that broke again and again is still known; no other is left of the first ones.
    assert chooser.apart.partner(Peer("c:1", 0), [Peer("b:1", 1)], 0.0) is not None
    assert chooser.apart.partner(Peer("a:0", 0), [Peer("b:1", 1)], 0.0) is None
