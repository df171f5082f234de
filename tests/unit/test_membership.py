"""Cluster membership: each rule by its events, then random histories that hold invariants."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from membership_story import GIB, LOST, Story, needs, serving

from hearth.common.errors import HearthError, Reason
from hearth.root.membership.apart import ROOT
from hearth.root.membership.decisions import Form, Member, Serve, Wait
from hearth.root.membership.events import (
    Cleared,
    Described,
    Drain,
    FormFailed,
    Found,
    Leaving,
    Lost,
    Refused,
    Undrain,
    Uneven,
)
from hearth.root.membership.membership import STRIKES
from hearth.root.membership.peers import PeerState

# The start.


def test_a_static_list_waits_for_all_of_it() -> None:
    story = Story("a:1", "b:1").start("a:1")
    decision = story.run(20)
    assert isinstance(decision, Wait)
    assert decision.why == "1 of 2 workers are there: waiting for b:1"
    assert "b:1 is silent" in story.of("b:1")[1]
    story.start("b:1").run(1)
    assert story.formed == [("a:1", "b:1")]


def test_fewer_may_be_enough() -> None:
    story = Story("a:1", "b:1", needed=1).start("b:1")
    story.run(1)
    assert story.formed == [("b:1",)]


def test_no_workers_at_all() -> None:
    assert isinstance(Story().decide(), Form)
    assert isinstance(Story(needed=1).run(5), Wait)


def test_those_that_announce_themselves_one_after_another_come_in_together() -> None:
    """By mDNS nobody knows how many will come: a first forming alone would load twice."""
    membership = Story(needed=1).membership

    def came(at: float, *names: str) -> None:
        membership.handle(Found(at, "mdns", tuple(f"{name}:1" for name in names)))
        membership.due(at)
        membership.handle(Described(at, f"{names[-1]}:1", names[-1], names[-1], GIB))

    came(0.0, "a")
    decision = membership.decide(0.1, False)
    assert isinstance(decision, Wait)
    assert "announce" in decision.why
    came(2.5, "a", "b")
    assert isinstance(membership.decide(4.0, False), Wait)
    assert membership.decide(5.6, False) == Form(("a:1", "b:1"), "2 workers are there")
    # Those that never stop coming are not waited for without end.
    membership = Story(needed=1).membership
    names = [f"w{i}" for i in range(4)]
    for i in range(1, 5):
        came(2.0 * i, *names[:i])
        membership.decide(2.0 * i, False)
    assert isinstance(membership.decide(8.1, False), Form)


def test_those_that_are_just_being_asked_come_in_with_the_rest() -> None:
    story = Story(needed=1)
    story.membership.handle(Found(0.0, "dns", ("a:1", "b:1")))
    assert set(story.membership.due(0.0)) == {"a:1", "b:1"}
    story.membership.handle(Described(0.1, "a:1", "a", "1", GIB))
    assert isinstance(story.membership.decide(0.1, False), Wait)
    story.membership.handle(Described(0.2, "b:1", "b", "2", GIB))
    assert story.membership.decide(0.2, False) == Form(("a:1", "b:1"), "2 workers are there")


def test_one_that_never_answers_holds_nobody_up_for_long() -> None:
    story = Story(needed=1)
    story.membership.handle(Found(0.0, "dns", ("a:1", "b:1")))
    story.membership.due(0.0)
    story.membership.handle(Described(0.1, "a:1", "a", "1", GIB))
    assert isinstance(story.membership.decide(0.2, False), Wait)
    assert isinstance(story.membership.decide(4.0, False), Form)


def test_a_worker_that_refuses_is_told_with_its_reason() -> None:
    story = Story("a:1")
    story.membership.due(0.0)
    story.membership.handle(Refused(0.1, "a:1", "it speaks version 9"))
    decision = story.decide()
    assert isinstance(decision, Wait)
    assert decision.why == "0 of 1 workers are there: waiting for a:1"
    assert story.of("a:1") == (PeerState.REFUSED, "it speaks version 9")


def test_more_workers_than_kv_heads() -> None:
    story = Story(needed=1, most=2).start("a:1", "b:1", "c:1")
    story.membership.handle(Found(0.0, "dns", ("a:1", "b:1", "c:1")))
    story.run(10)
    assert story.formed == [("a:1", "b:1")]
    state, reason = story.of("c:1")
    assert state is PeerState.READY
    assert "heads allow 2" in reason


def test_a_worker_without_the_memory_is_left_out_where_it_may_be() -> None:
    story = Story(needed=1, fit=needs(3 * GIB, 2 * GIB))
    story.start("a:1", "b:1").start("c:1", room=GIB // 2)
    story.membership.handle(Found(0.0, "dns", ("a:1", "b:1", "c:1")))
    story.run(5)
    assert story.formed == [("a:1", "b:1")]
    state, reason = story.of("c:1")
    assert state is PeerState.REFUSED
    assert str(GIB // 2) in reason


def test_two_addresses_of_one_worker_are_one_worker() -> None:
    story = Story(needed=1)
    story.up["10.0.0.1:1"] = story.up["[fd00::1]:1"] = ("a", "same", GIB)
    story.membership.handle(Found(0.0, "dns", ("10.0.0.1:1", "[fd00::1]:1")))
    story.run(10)
    assert story.formed == [("10.0.0.1:1",)]
    assert "the same worker as 10.0.0.1:1" in story.of("[fd00::1]:1")[1]


# A loss.


def test_a_lost_worker_is_waited_for_and_comes_back_at_its_rank() -> None:
    story = serving("a:1", "b:1")
    story.lose("a:1")
    decision = story.run(29)
    assert isinstance(decision, Wait)
    assert "30 s" in decision.why
    assert "a:1" in decision.why
    assert story.of("a:1")[0] is PeerState.LOST
    story.start("a:1", instance="2").run(1)
    assert story.formed == [("a:1", "b:1")] * 2


def test_after_the_wait_the_rest_goes_on_without_it() -> None:
    story = serving("a:1", "b:1")
    story.lose("a:1").run(31)
    assert story.formed[1:] == [("b:1",)]
    assert story.of("a:1")[0] is PeerState.UNREACHABLE
    # And without anybody.
    story.lose("b:1").run(31)
    assert story.formed[2:] == [()]


def test_where_the_rest_have_no_room_the_wait_goes_on() -> None:
    story = serving("a:1", "b:1", fit=needs(3 * GIB, GIB))
    decision = story.lose("a:1").run(600)
    assert isinstance(decision, Wait)
    assert f"the root has {GIB} of {1.5 * GIB:g}" in decision.why
    story.start("a:1").run(1)
    assert story.formed == [("a:1", "b:1")] * 2


def test_who_comes_back_without_its_memory_is_still_waited_for() -> None:
    story = serving("a:1", "b:1", fit=needs(2 * GIB, GIB))
    story.lose("a:1").start("a:1", room=5)
    decision = story.run(20)
    assert isinstance(decision, Wait)
    assert story.of("a:1")[0] is PeerState.REFUSED
    story.run(11)
    assert story.formed[1:] == [("b:1",)]


def test_two_losses_at_once_are_two_waits() -> None:
    story = serving("a:1", "b:1")
    story.lose("a:1")
    del story.up["b:1"]  # and nobody noticed
    assert isinstance(story.run(28), Wait)
    assert {story.of(a)[0] for a in ("a:1", "b:1")} == {PeerState.LOST}
    story.start("b:1").run(1)
    assert story.formed[1:] == []
    story.start("a:1").run(1)
    assert story.formed[1:] == [("a:1", "b:1")]


def test_a_loss_of_nobody_in_particular() -> None:
    story = serving("a:1", "b:1")
    story.membership.handle(Lost(story.now, "", "a step took too long"))
    story.run(1)
    assert story.formed[1:] == [("a:1", "b:1")]


def test_one_that_is_left_and_busy_for_a_moment_is_waited_for_too() -> None:
    story = serving("a:1", "b:1")
    story.lose("a:1").start("a:1")
    story.answer()
    story.membership.handle(
        FormFailed(story.now, "b:1", Reason.WORKER_BUSY, "its step has not ended yet")
    )
    decision = story.run(2)
    assert isinstance(decision, Wait)
    assert decision.why.startswith("waiting up to ")
    assert decision.why.endswith(" s for b (b:1)")
    assert "its step has not ended yet" in story.of("b:1")[1]
    story.run(5)
    assert story.formed[1:] == [("a:1", "b:1")]


def test_a_worker_that_leaves_on_purpose_is_not_waited_for() -> None:
    story = serving("a:1", "b:1")
    story.lose("a:1", on_purpose=True).run(1)
    assert story.formed[1:] == [("b:1",)]
    # Unless it is needed.
    tight = serving("a:1", "b:1", fit=needs(3 * GIB, GIB))
    assert isinstance(tight.lose("a:1", on_purpose=True).run(100), Wait)
    tight.start("a:1").run(1)
    assert tight.formed[1:] == [("a:1", "b:1")]


def test_a_newcomer_does_not_move_the_weights_of_those_who_return() -> None:
    story = serving("a:1", "b:1")
    story.lose("a:1").start("z:1")
    story.membership.handle(Found(story.now, "dns", ("z:1",)))
    story.run(1)
    story.start("a:1").run(1)
    assert story.formed[1:] == [("a:1", "b:1")]


def test_a_worker_that_dies_at_once_again_and_again_is_left_out_for_a_while() -> None:
    story = serving("a:1", "b:1")
    for _ in range(12):
        if story.membership.serving == ("a:1", "b:1"):
            story.lose("a:1").start("a:1")
        story.run(0.75)
    assert story.membership.serving == ("b:1",)
    assert "it failed 3 times in a row, the last time: a:1 was lost" in story.of("a:1")[1]
    story.run(60)
    assert story.membership.serving == ("a:1", "b:1")


def test_a_worker_killed_now_and_then_is_always_taken_back() -> None:
    story = serving("a:1", "b:1")
    for _ in range(20):
        story.run(1.5)
        assert story.membership.serving == ("a:1", "b:1")
        story.lose("a:1").start("a:1").run(1)
    assert set(story.formed) == {("a:1", "b:1")}


def test_an_idle_cluster_makes_nobody_trusted() -> None:
    """It dies at the first step each time; requests come with long pauses between them."""
    story = serving("a:1", "b:1")
    story.lose("a:1").start("a:1")  # it had worked until now
    story.working = False
    losses = 0
    while (story.run(5), story.membership.serving)[1] == ("a:1", "b:1"):
        story.lose("a:1").start("a:1")
        losses += 1
    assert losses == STRIKES
    assert story.membership.serving == ("b:1",)


def test_what_was_trusted_is_not_punished_for_what_was_long_ago() -> None:
    story = serving("a:1", "b:1")
    for _ in range(10):
        story.working = False
        for _ in range(STRIKES - 1):
            story.lose("a:1").start("a:1").run(1)
            assert story.membership.serving == ("a:1", "b:1")
        story.working = True
        story.run(2)


def test_one_that_hangs_is_left_out_at_its_first_failure() -> None:
    story = serving("a:1", "b:1").hang("a:1")
    story.run(0.5)
    assert story.formed[1:] == [("b:1",)]
    assert "a:1 hangs" in story.of("a:1")[1]
    story.run(40)
    assert story.formed[2:] == [("a:1", "b:1")]  # after its ban, when no request runs


def test_one_that_hangs_again_and_again_is_left_out_longer_and_longer() -> None:
    """Though it works for a while each time."""
    story = serving("a:1", "b:1")
    hangs = 0
    while story.now < 3600:
        if "a:1" in (story.membership.serving or ()):
            story.hang("a:1")
            hangs += 1
        story.run(2)
    assert 4 < hangs < 11


def test_other_shares_are_taken_when_no_request_runs() -> None:
    story = Story("a:1", "b:1").start("a:1", "b:1")
    story.run(5)
    both = ("a:1", "b:1")
    assert story.formed == [both]
    story.busy = True
    story.membership.handle(Uneven(story.now, both, (2.0, 1.0, 1.0)))
    story.run(100)
    assert story.formed == [both]
    story.busy = False
    story.run(100)
    assert story.formed == [both, both]  # once
    # Of other workers than those that serve: too late.
    story.membership.handle(Uneven(story.now, ("a:1",), (2.0, 1.0)))
    story.run(10)
    assert story.formed == [both, both]


def test_one_that_was_not_at_fault_is_taken_back_at_once() -> None:
    story = serving("a:1", "b:1").hang("a:1")
    story.run(1)
    assert story.membership.serving == ("b:1",)
    story.membership.handle(Cleared(story.now, "a:1"))
    story.run(5)
    assert story.membership.serving == ("a:1", "b:1")


def test_one_that_hangs_and_is_needed_is_used_all_the_same() -> None:
    story = serving("a:1", "b:1", fit=needs(3 * GIB, GIB)).hang("a:1")
    story.run(1)
    assert story.formed[1:] == [("a:1", "b:1")]


@pytest.mark.parametrize(
    "reason", [Reason.OUT_OF_MEMORY, Reason.BAD_CHUNK, Reason.WORKER_BUSY, Reason.INTERNAL]
)
def test_one_that_cannot_load_prolongs_no_outage(reason: Reason) -> None:
    """The wait for it is one, and it disturbs those that serve less and less often."""
    story = serving("a:1", "b:1").fail("a:1", reason)
    story.lose("b:1").start("b:1")
    story.run(31)
    assert story.membership.serving == ("b:1",)
    before = len(story.attempts)
    assert before <= 5
    story.run(3600)
    assert story.membership.serving == ("b:1",)
    assert len(story.attempts) - before < 12
    story.failing.clear()
    story.run(620)
    assert story.membership.serving == ("a:1", "b:1")


@pytest.mark.parametrize("reason", [Reason.WORKER_LOST, Reason.UNREACHABLE, Reason.NOT_LOADED])
def test_one_that_dies_while_it_loads_is_left_out_after_some_times(reason: Reason) -> None:
    story = serving("a:1", "b:1").fail("a:1", reason)
    story.lose("b:1").start("b:1").run(5)
    assert story.membership.serving == ("b:1",)
    assert len(story.attempts) == STRIKES


def test_a_slow_failure_is_not_repeated_once_the_wait_is_over() -> None:
    """Each attempt to load takes longer than the wait for a lost worker."""
    story = serving("a:1", "b:1").fail("a:1", Reason.WORKER_LOST)
    story.lose("b:1").start("b:1")
    began = story.now
    while story.membership.serving is None:
        story.answer()
        decision = story.decide()
        if isinstance(decision, Form):
            story.now += 40 * ("a:1" in decision.workers)
            story.form(decision)
        story.now += 0.25
    assert story.membership.serving == ("b:1",)
    assert len(story.attempts) == 2
    assert story.now - began < 90


def test_one_that_stalls_while_it_loads_is_left_out_at_once() -> None:
    story = serving("a:1", "b:1").fail("a:1", Reason.DEADLINE, unfit=True)
    story.lose("b:1").start("b:1").run(1)
    assert story.membership.serving == ("b:1",)
    assert len(story.attempts) == 1


def test_at_the_start_who_is_needed_is_tried_again() -> None:
    story = Story("a:1", "b:1").start("a:1", "b:1").fail("a:1", Reason.DEADLINE, unfit=True)
    assert isinstance(story.run(20), Wait)
    assert len(story.attempts) > 2
    story.failing.clear()
    story.run(20)
    assert story.membership.serving == ("a:1", "b:1")


def test_at_the_start_who_is_not_needed_and_fails_is_left_out() -> None:
    story = Story("a:1", "b:1", needed=1).start("a:1", "b:1")
    story.fail("a:1", Reason.DEADLINE, unfit=True).run(2)
    assert story.membership.serving == ("b:1",)


def test_a_forming_that_fails_for_nobody_s_fault_is_tried_again_more_and_more_slowly() -> None:
    story = Story("a:1").start("a:1")
    tries = 0
    while story.now < 60:
        story.answer()
        if isinstance(story.decide(), Form):
            tries += 1
            story.membership.handle(FormFailed(story.now, "", Reason.INTERNAL, "a bad disk"))
            decision = story.decide()
            assert isinstance(decision, Wait)
            assert decision.why == "a bad disk"
        story.now += 0.25
    assert 5 < tries < 15


def test_a_worker_that_forming_refuses_is_left_out_and_asked_again() -> None:
    story = serving("a:1")
    story.start("b:1")
    story.membership.handle(Found(story.now, "dns", ("b:1",)))
    while not isinstance(decision := story.decide(), Form):
        story.now += 0.25
        story.answer()
    assert decision.workers == ("a:1", "b:1")
    story.membership.handle(FormFailed(story.now, "b:1", Reason.BAD_SHARD, "it cannot"))
    story.run(2)
    assert story.membership.serving == ("a:1",)
    assert story.of("b:1") == (PeerState.REFUSED, "it cannot")
    story.run(20)
    assert story.membership.serving == ("a:1", "b:1")


# Coming in while the cluster serves.


def test_a_new_worker_is_taken_in_when_no_request_runs() -> None:
    story = serving("a:1")
    story.busy = True
    story.start("b:1")
    story.membership.handle(Found(story.now, "mdns", ("b:1",)))
    assert isinstance(story.run(600), Serve)
    state, reason = story.of("b:1")
    assert state is PeerState.READY
    assert "when no request runs" in reason
    story.busy = False
    story.run(1)
    assert story.formed[1:] == [("a:1", "b:1")]


def test_one_that_was_in_before_is_taken_in_even_if_requests_never_end() -> None:
    story = serving("a:1", "b:1")
    story.lose("a:1").run(31)
    assert story.membership.serving == ("b:1",)
    story.busy = True
    story.start("a:1")
    assert isinstance(story.run(50), Serve)
    story.run(15)
    assert story.membership.serving == ("a:1", "b:1")


def test_several_that_come_together_come_in_once() -> None:
    story = serving("a:1", most=5)
    story.start("b:1")
    story.membership.handle(Found(story.now, "dns", ("b:1",)))
    story.run(1)
    story.start("c:1")
    story.membership.handle(Found(story.now, "dns", ("b:1", "c:1")))
    story.run(10)
    assert story.formed[1:] == [("a:1", "b:1", "c:1")]


def test_a_worker_at_a_new_address_has_its_old_rank() -> None:
    story = Story(needed=2)
    story.up = {"10.0.0.1:1": ("w0", "x", GIB), "10.0.0.2:1": ("w1", "y", GIB)}
    story.membership.handle(Found(0.0, "dns", tuple(story.up)))
    story.run(5)
    assert story.formed == [("10.0.0.1:1", "10.0.0.2:1")]
    story.lose("10.0.0.1:1")
    story.up["10.0.0.9:1"] = ("w0", "z", GIB)
    story.membership.handle(Found(story.now, "dns", tuple(story.up)))
    story.run(2)
    assert story.formed[1:] == [("10.0.0.9:1", "10.0.0.2:1")]
    assert {c.address for c in story.membership.peers} == {"10.0.0.9:1", "10.0.0.2:1"}


def test_what_no_source_lists_is_forgotten_once_it_is_gone() -> None:
    story = Story(needed=1).start("a:1")
    story.membership.handle(Found(0.0, "dns", ("a:1", "b:1")))
    story.run(5)
    story.membership.handle(Found(story.now, "dns", ()))
    story.run(5)
    assert [c.address for c in story.membership.peers] == ["a:1"]  # it serves all the same
    story.lose("a:1").run(31)
    assert story.membership.peers == []
    assert story.membership.serving == ()


# Draining.


def test_a_drained_worker_is_out_until_it_is_restarted() -> None:
    story = serving("a:1", "b:1")
    story.busy = True
    story.membership.handle(Drain(story.now, "a"))
    story.run(100)
    assert story.formed[1:] == [("b:1",)]
    assert story.of("a:1") == (PeerState.DRAINED, "taken out on purpose")
    story.busy = False
    story.run(100)
    assert story.formed[2:] == []
    story.start("a:1", instance="2").run(10)
    assert story.formed[2:] == [("a:1", "b:1")]


def test_a_drained_worker_may_be_let_in_again() -> None:
    story = serving("a:1", "b:1")
    story.membership.handle(Drain(story.now, "a:1"))
    story.run(10)
    story.membership.handle(Undrain(story.now, "a:1"))
    story.run(10)
    assert story.formed[1:] == [("b:1",), ("a:1", "b:1")]


def test_one_drained_before_it_ever_answered_stays_out_until_it_is_restarted() -> None:
    story = serving("a:1")
    story.membership.handle(Found(story.now, "dns", ("b:1",)))
    story.membership.handle(Drain(story.now, "b:1"))
    story.start("b:1").run(20)
    assert story.of("b:1")[0] is PeerState.DRAINED
    assert story.formed[1:] == []
    story.start("b:1", instance="2").run(20)
    assert story.formed[1:] == [("a:1", "b:1")]


@pytest.mark.parametrize("needed", [None, 1])
def test_listed_workers_drained_before_the_start_are_neither_used_nor_waited_for(
    needed: int | None,
) -> None:
    story = Story("a:1", "b:1", "c:1", needed=needed).start("a:1", "b:1", "c:1")
    story.membership.handle(Drain(story.now, "b:1"))
    story.run(20)
    assert story.formed == [("a:1", "c:1")]
    assert story.of("b:1") == (PeerState.DRAINED, "taken out on purpose")
    story.membership.handle(Undrain(story.now, "b:1"))
    story.run(20)
    assert story.formed[1:] == [("a:1", "b:1", "c:1")]


def test_one_about_to_stop_before_it_ever_answered_is_let_in_when_it_answers() -> None:
    story = serving("a:1")
    story.membership.handle(Found(story.now, "dns", ("b:1",)))
    story.membership.handle(Leaving(story.now, "b:1", "it is shutting down"))
    story.start("b:1").run(20)
    assert story.formed[1:] == [("a:1", "b:1")]


def test_a_worker_that_is_needed_cannot_be_drained() -> None:
    story = serving("a:1", "b:1", fit=needs(3 * GIB, GIB))
    with pytest.raises(HearthError, match=f"a .a:1. cannot be taken out: .* {GIB} of") as error:
        story.membership.handle(Drain(story.now, "a:1"))
    assert error.value.reason == "OUT_OF_MEMORY"
    assert isinstance(story.run(10), Serve)
    assert len(story.formed) == 1


def test_a_drained_worker_s_place_is_taken_by_one_that_is_there() -> None:
    story = Story("a:1", "b:1", most=2, fit=needs(3 * GIB, GIB)).start("a:1", "b:1")
    story.run(10)
    story.busy = True
    story.start("c:1")
    story.membership.handle(Found(story.now, "dns", ("c:1",)))
    story.run(10)
    assert "not needed" in story.of("c:1")[1]
    story.membership.handle(Drain(story.now, "a:1"))
    story.run(1)
    assert story.formed[1:] == [("b:1", "c:1")]


def test_of_two_drains_the_second_counts_without_the_first() -> None:
    """The model needs two workers of three: one may go, not two."""
    story = serving("a:1", "b:1", "c:1", fit=needs(3 * GIB, GIB))
    story.membership.handle(Drain(story.now, "a:1"))
    with pytest.raises(HearthError, match=r"b .b:1. cannot be taken out") as error:
        story.membership.handle(Drain(story.now, "b:1"))
    assert error.value.reason == "OUT_OF_MEMORY"
    story.run(10)
    assert story.formed[1:] == [("b:1", "c:1")]


def test_two_drains_for_which_there_is_room_both_happen() -> None:
    story = serving("a:1", "b:1", "c:1")
    story.membership.handle(Drain(story.now, "a:1"))
    story.membership.handle(Drain(story.now, "b:1"))
    story.run(10)
    assert story.formed[1:] == [("c:1",)]


@pytest.mark.parametrize("event", [Drain, Leaving])
def test_one_that_leaves_while_another_is_lost_is_not_waited_for(
    event: type[Drain | Leaving],
) -> None:
    story = serving("a:1", "b:1", "c:1")
    gone = Drain(story.now, "a:1") if event is Drain else Leaving(story.now, "a:1", "stopping")
    story.membership.handle(gone)
    story.lose("b:1").start("b:1", instance="2")
    del story.up["a:1"]
    story.run(1)
    assert story.formed[1:] == [("b:1", "c:1")]


def test_one_that_is_drained_while_nothing_serves_is_not_waited_for() -> None:
    story = serving("a:1", "b:1", "c:1").lose("b:1")
    story.membership.handle(Drain(story.now, "b:1"))
    story.membership.handle(Drain(story.now, "a:1"))
    del story.up["a:1"]
    story.run(1)
    assert story.formed[1:] == [("c:1",)]


# Leaving by itself.


def test_a_worker_that_is_about_to_stop_is_divided_around_before_it_is_gone() -> None:
    story = serving("a:1", "b:1")
    story.busy = True
    story.membership.handle(Leaving(story.now, "a:1", "it is about to stop"))
    story.run(0.5)
    assert story.formed[1:] == [("b:1",)]
    del story.up["a:1"]
    story.run(10)
    assert story.of("a:1")[0] is PeerState.UNREACHABLE
    # Restarted, it is taken in as any other.
    story.start("a:1", instance="2").run(100)
    assert story.formed[2:] == [("a:1", "b:1")]


def test_one_that_is_about_to_stop_and_is_needed_serves_until_it_is_gone() -> None:
    story = serving("a:1", "b:1", fit=needs(3 * GIB, GIB))
    story.membership.handle(Leaving(story.now, "a:1", "it is about to stop"))
    assert isinstance(story.run(10), Serve)
    state, reason = story.of("a:1")
    assert state is PeerState.IN
    assert f"about to stop, and the others have no room: the root has {GIB} of" in reason
    # However it went: it had said so.
    assert isinstance(story.lose("a:1").run(1), Wait)
    assert story.of("a:1")[0] is PeerState.UNREACHABLE
    story.start("a:1", instance="2").run(1)
    assert story.formed[1:] == [("a:1", "b:1")]


def test_one_that_was_replaced_makes_room_for_the_next_to_leave() -> None:
    """As in an upgrade, one after another: no more than one is out at a time."""
    story = serving("a:1", "b:1", "c:1", fit=needs(3 * GIB, GIB))
    story.busy = True
    for address in ("c:1", "b:1", "a:1"):
        story.membership.handle(Leaving(story.now, address, "it is about to stop"))
        story.run(1)
        del story.up[address]
        story.run(1)
        assert len(story.membership.serving or ()) == 2
        story.start(address, instance="2").run(20)
    assert story.formed[1:] == [("a:1", "b:1"), ("a:1", "c:1"), ("b:1", "c:1")]


def test_a_worker_that_stops_while_nothing_serves_is_not_waited_for() -> None:
    story = serving("a:1", "b:1", "c:1")
    story.lose("a:1").start("a:1")
    story.answer()
    story.membership.handle(
        FormFailed(story.now, "b:1", Reason.SHUTTING_DOWN, "it is shutting down")
    )
    del story.up["b:1"]
    assert story.of("b:1")[0] is PeerState.UNREACHABLE
    story.membership.handle(Leaving(story.now, "c:1", "it is shutting down"))
    del story.up["c:1"]
    story.run(1)
    assert story.formed[1:] == [("a:1",)]


def test_draining_nobody() -> None:
    story = serving("a:1")
    with pytest.raises(HearthError, match=r"no worker is called 'c'.*a:1"):
        story.membership.handle(Drain(story.now, "c"))


class Histories(RuleBasedStateMachine):
    """Any order of starts, deaths, drains and answers that come late."""

    addresses = ("a:1", "b:1", "c:1", "d:1")

    @initialize(static=st.integers(0, 3), rooms=st.lists(st.integers(1, 4), min_size=4, max_size=4))
    def begin(self, static: int, rooms: list[int]) -> None:
        self.rooms = dict(zip(self.addresses, rooms, strict=True))
        self.fit = needs(4, 2)
        self.story = Story(*self.addresses[:static], most=2, needed=min(static, 2), fit=self.fit)
        self.instance = 0

    @rule(address=st.sampled_from(addresses))
    def start(self, address: str) -> None:
        if address not in self.story.up:
            self.instance += 1
            room = self.rooms[address]
            self.story.start(address, room=room, instance=str(self.instance))

    @rule(address=st.sampled_from(addresses), on_purpose=st.booleans(), noticed=st.booleans())
    def die(self, address: str, on_purpose: bool, noticed: bool) -> None:
        if address in self.story.up:
            if address in (self.story.membership.serving or ()) and noticed:
                self.story.lose(address, on_purpose)
            elif address not in (self.story.membership.serving or ()):
                del self.story.up[address]

    @rule(listed=st.sets(st.sampled_from(addresses)), source=st.sampled_from(("dns", "mdns")))
    def list(self, listed: set[str], source: str) -> None:
        self.story.membership.handle(Found(self.story.now, source, tuple(listed)))

    @rule(address=st.sampled_from(addresses), undo=st.booleans())
    def drain(self, address: str, undo: bool) -> None:
        try:
            self.story.membership.handle((Undrain if undo else Drain)(self.story.now, address))
        except HearthError as error:
            assert error.reason in ("INVALID_ARGUMENT", "OUT_OF_MEMORY")

    @rule(address=st.sampled_from(addresses))
    def leave(self, address: str) -> None:
        if address in self.story.up:
            self.story.membership.handle(Leaving(self.story.now, address, "it is about to stop"))

    @rule(order=st.permutations(addresses))
    def part(self, order: Sequence[str]) -> None:
        one, other, *_ = order
        if {one, other} <= set(self.story.membership.serving or ()):
            self.story.membership.handle(Lost(self.story.now, one, "unheard", apart_from=other))

    @rule(address=st.sampled_from(addresses))
    def hang(self, address: str) -> None:
        if address in (self.story.membership.serving or ()):
            self.story.hang(address)

    @rule(
        address=st.sampled_from(addresses),
        reason=st.sampled_from([None, LOST, Reason.OUT_OF_MEMORY, Reason.SHUTTING_DOWN]),
        unfit=st.booleans(),
    )
    def fail(self, address: str, reason: str | None, unfit: bool) -> None:
        """Attempts to form with this worker fail from now on; None: they do not."""
        if reason is None:
            self.story.failing.pop(address, None)
        else:
            self.story.fail(address, reason, unfit)

    @rule(order=st.permutations(addresses))
    def part_from_root(self, order: Sequence[str]) -> None:
        if order[0] in (self.story.membership.serving or ()):
            self.story.membership.handle(Lost(self.story.now, order[0], "unheard", apart_from=ROOT))

    @rule(working=st.booleans())
    def trust(self, working: bool) -> None:
        self.story.working = working

    @rule()
    def break_nobody(self) -> None:
        if self.story.membership.serving is not None:
            self.story.membership.handle(Lost(self.story.now, "", "a step took too long"))

    @rule(seconds=st.floats(0, 40), busy=st.booleans())
    def pass_time(self, seconds: float, busy: bool) -> None:
        self.story.busy = busy
        self.step(seconds)

    def step(self, seconds: float) -> None:
        end = self.story.now + seconds
        while self.story.now < end:
            self.story.answer()
            self.story.work()
            decision = self.story.decide()
            if isinstance(decision, Form):
                self.check(decision)
                self.form(decision)
            else:
                assert decision.until > self.story.now
            self.story.now += 0.5

    def form(self, decision: Form) -> None:
        """As forming does: what has no room is refused, by the rooms that the workers have."""
        up = self.story.up
        members = [Member(a, a, up[a][2]) for a in decision.workers if a in up]
        misfit = self.fit(tuple(members)) if len(members) == len(decision.workers) else None
        if misfit is None:
            self.story.form(decision)
        else:
            reason = Reason.OUT_OF_MEMORY
            self.story.membership.handle(
                FormFailed(self.story.now, misfit.address, reason, misfit.problem)
            )

    def check(self, decision: Form) -> None:
        known = {c.address: c for c in self.story.membership.peers}
        chosen = [known[address] for address in decision.workers]
        assert len(chosen) <= 2
        assert not any(c.drained for c in chosen)
        assert [c.order for c in chosen] == sorted({c.order for c in chosen})
        assert decision.workers != self.story.membership.serving
        instances = [c.instance for c in chosen]
        assert len(instances) == len(set(instances))
        members = tuple(Member(c.address, c.title, c.room) for c in chosen)
        # A static list is formed as it is, and told by forming what it lacks.
        if self.story.formed:
            assert self.fit(members) is None

    def teardown(self) -> None:
        """After any history: left alone with every worker up, all that have a place are in."""
        if not hasattr(self, "story"):
            return
        story, membership = self.story, self.story.membership
        membership.handle(Found(story.now, "dns", tuple(self.addresses)))
        membership.handle(Found(story.now, "mdns", ()))
        story.failing.clear()
        for address in self.addresses:
            self.rooms[address] = 4
            if address in (membership.serving or ()) and address not in story.up:
                membership.handle(Lost(story.now, address, "noticed at last"))
            story.start(address, room=4, instance="last")
        story.busy = False
        for peer in membership.peers:
            membership.handle(Undrain(story.now, peer.address))
        self.step(700)
        assert membership.serving is not None
        assert len(membership.serving) == 2
        orders = [c.order for c in membership.peers if c.state is PeerState.IN]
        assert orders == sorted(orders)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
