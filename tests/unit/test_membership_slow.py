"""Workers that would slow requests are spares; they come back when needed, or when changed."""

from __future__ import annotations

from collections.abc import Collection

from membership_story import GIB, Story

from hearth.root.membership.decisions import Member, Misfit
from hearth.root.membership.events import Found
from hearth.root.membership.peers import PeerState
from hearth.root.membership.replay import replay

REASON = "left out: it would slow requests"


class Measured:
    """`b` slows requests beside `a`, once the two were measured."""

    def __init__(self) -> None:
        self.slow: Collection[str] = ()

    def __call__(self, workers: tuple[Member, ...]) -> Misfit | None:
        addresses = [worker.address for worker in workers]
        found = next((each for each in addresses if each in self.slow), None)
        if found is None or "a:1" not in addresses:
            return None
        return Misfit(found, REASON, slow=True)


def measured(*static: str, **options: object) -> tuple[Story, Measured]:
    """A cluster of `a` that serves: its first attempt to form found `b` to be slow."""
    fit = Measured()
    story = Story(*static, fit=fit, **options)  # type: ignore[arg-type]
    story.start("a:1", "b:1")
    story.slow = {"b:1"}
    while not story.formed:
        story.run(0.0)
        story.now += 0.25
    fit.slow = story.slow
    story.run(20)
    return story, fit


def test_a_slow_worker_is_a_spare_with_its_reason() -> None:
    story, _ = measured("a:1", "b:1")
    assert story.formed == [("a:1",)]
    assert story.of("b:1") == (PeerState.READY, REASON)
    assert next(p for p in story.membership.peers if p.address == "b:1").spare
    replay(story.record)


def test_it_is_used_when_the_other_is_lost() -> None:
    story, _ = measured("a:1", "b:1")
    story.slow = set()
    story.lose("a:1").run(40)
    assert story.formed == [("a:1",), ("b:1",)]
    story.slow = {"b:1"}
    story.start("a:1", instance="2").run(20)
    assert story.formed[2:] == [("a:1",)]
    assert story.of("b:1") == (PeerState.READY, REASON)
    replay(story.record)


def test_an_attempt_that_leaves_a_worker_out_is_not_made_again() -> None:
    """Even where the question of what fits has another answer than the attempt found."""
    story, fit = measured("a:1", "b:1")
    fit.slow = ()
    story.run(60)
    assert story.formed == [("a:1",)]
    # A restarted one may be faster than before.
    story.slow = set()
    story.start("b:1", instance="2").run(20)
    assert story.formed == [("a:1",), ("a:1", "b:1")]
    replay(story.record)


def test_a_new_worker_is_measured_beside_the_slow_one() -> None:
    story, _ = measured("a:1", "b:1", needed=1)
    story.membership.handle(Found(story.now, "dns", ("c:1",)))
    story.start("c:1").run(20)
    assert story.formed == [("a:1",), ("a:1", "c:1")]
    assert story.of("b:1") == (PeerState.READY, REASON)


def test_a_slow_worker_counts_as_one_that_is_there() -> None:
    """--min-workers 2, one of them not worth having: the first attempt failed after measuring."""
    fit = Measured()
    fit.slow = {"b:1"}
    story = Story(needed=2, fit=fit)
    story.membership.handle(Found(0.0, "dns", ("a:1", "b:1")))
    story.start("a:1", "b:1", room=GIB).run(20)
    assert story.formed == [("a:1",)]
