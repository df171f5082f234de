"""Stories: what the membership remembers, what a record holds, and what a replay notices."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from membership_story import GIB, Story, needs, serving

from hearth.common.errors import HearthError
from hearth.root.membership import deciding, story
from hearth.root.membership import membership as membership_module
from hearth.root.membership.decisions import Form, Rules, Wait
from hearth.root.membership.events import (
    Described,
    Drain,
    Formed,
    FormFailed,
    Found,
    Lost,
    Stimulus,
)
from hearth.root.membership.membership import Membership, MembershipError
from hearth.root.membership.peers import PeerState
from hearth.root.membership.replay import _STIMULI, DivergedError, _stimulus, main, replay

RECORDED = Path(__file__).parents[1] / "stories" / "lost_while_loading.jsonl"
STEADY, FRAGILE, BUSY = (f"127.0.0.1:{port}" for port in (7717, 7718, 7719))


def recorded() -> list[str]:
    return RECORDED.read_text(encoding="utf-8").splitlines()


def test_the_recorded_story_of_a_formation_that_failed() -> None:
    """One worker is another root's, one is lost while its weights arrive, one is steady."""
    (membership,) = replay(recorded())
    told = membership.story()
    decisions = [entry.result for entry in told if isinstance(entry.result, Form)]
    assert decisions == [
        Form((STEADY, FRAGILE), "2 workers are there"),
        Form((STEADY,), "1 worker is there"),
    ]
    (failed,) = [entry.event for entry in told if isinstance(entry.event, FormFailed)]
    assert (failed.address, failed.reason) == (FRAGILE, "UNREACHABLE")
    assert [entry.event.workers for entry in told if isinstance(entry.event, Formed)] == [(STEADY,)]
    assert [peer.state for peer in membership.peers] == [
        PeerState.IN,
        PeerState.UNREACHABLE,
        PeerState.REFUSED,
    ]


def test_changed_settings_are_noticed() -> None:
    rules = Rules(most=3, needed=2, static=(STEADY, FRAGILE, BUSY), wait_seconds=1.0)
    with pytest.raises(DivergedError, match=r"line 3 .*0 of 1 workers.*0 of 2 workers"):
        replay(recorded(), rules)


def test_a_changed_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "_SETTLE_SECONDS", 0.0)
    with pytest.raises(DivergedError, match=r"asking 127\.0\.0\.1:7717.*Form"):
        replay(recorded())


def test_a_question_that_was_not_asked_then_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "_SETTLE_SECONDS", 0.0)
    lines = [json.loads(line) for line in recorded()]
    without = [json.dumps({k: v for k, v in line.items() if k != "fits"}) for line in lines]
    with pytest.raises(DivergedError, match=r"whether the model fits on .* is not recorded"):
        replay(without)


def test_a_broken_invariant_is_the_result_of_a_replay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A story recorded because an invariant broke is read to its end first."""
    monkeypatch.setattr(membership_module, "broken", lambda *_: ["it serves"])
    assert main(str(RECORDED)) == 1
    assert "line 2 of the story: it serves" in capsys.readouterr().err
    changed = tmp_path / "story.jsonl"
    changed.write_text("\n".join([*recorded()[:-1], recorded()[-1].replace("READY", "SEEN")]))
    assert main(str(changed)) == 1
    assert "recorded was" in capsys.readouterr().err


def test_a_mistake_in_the_rules_is_not_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: deciding.Decider, now: float) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr(deciding.Decider, "at_start", broken)
    with pytest.raises(KeyError, match="a mistake"):
        replay(recorded())


def test_several_runs_in_one_file() -> None:
    assert len(replay(recorded() + recorded())) == 2
    assert replay([]) == []


def test_what_a_test_lives_through_can_be_replayed() -> None:
    story = Story("a:1", "b:1", needed=1, fit=needs(3 * GIB, 2 * GIB))
    story.start("a:1", "b:1", room=2 * GIB).run(10)
    story.lose("a:1").run(40)
    story.start("a:1", instance="2", room=2 * GIB).run(5)
    story.membership.handle(Drain(story.now, "b:1"))
    with pytest.raises(HearthError):
        story.membership.handle(Drain(story.now, "nobody"))
    story.run(5)
    (membership,) = replay(story.record)
    assert membership.serving == story.membership.serving == ("a:1",)
    assert membership.story() == story.membership.story()
    # A record that lacks an event leads elsewhere.
    index = next(i for i, line in enumerate(story.record) if '"Lost"' in line)
    with pytest.raises(DivergedError):
        replay(story.record[:index] + story.record[index + 1 :])


def _broken(line: str) -> list[str]:
    """A line with one thing changed that no record has."""
    data: dict[str, Any] = json.loads(line)
    made = ["", "{", "[]", "7", '"story"', "{}", '{"story": 2, "rules": {}}', line[:-2]]
    for key in data:
        if key not in ("moves", "result"):
            rest = {k: v for k, v in data.items() if k != key}
            made.append(json.dumps(rest | {key: None}))
            made.append(json.dumps(rest | {key: [[1]]}))
    return made


@pytest.mark.parametrize("kind", _STIMULI.values(), ids=_STIMULI)
def test_every_kind_of_event_is_read_back(kind: type[Stimulus]) -> None:
    values: dict[Any, Any] = {
        float: 1.5,
        str: "a:1",
        bool: True,
        int: 7,
        tuple[str, ...]: ("a:1", "b:1"),
        tuple[float, ...]: (1.0, 2.5),
    }
    fields: dict[str, Any] = {n: values[hint] for n, hint in get_type_hints(kind).items()}
    event = kind(**fields)
    line = json.loads(story.line(story.Entry(event, (), None)))
    assert _stimulus(line) == event


def test_a_line_that_is_no_entry_is_named() -> None:
    for number, line in enumerate(recorded(), 1):
        for damaged in _broken(line):
            lines = recorded()
            lines[number - 1] = damaged
            with pytest.raises(HearthError, match=f"line {number} is not an entry of a story"):
                replay(lines)


@given(st.data())
def test_damage_never_leads_to_another_error(data: st.DataObject) -> None:
    lines = recorded()
    index = data.draw(st.integers(0, len(lines) - 1))
    at = data.draw(st.integers(0, len(lines[index])))
    lines[index] = lines[index][:at] + data.draw(st.text(max_size=3)) + lines[index][at + 1 :]
    try:
        replay(lines)
    except (DivergedError, HearthError, MembershipError) as error:
        assert str(error)


def test_the_story_has_what_happened_and_not_every_question() -> None:
    story = serving("a:1", "b:1")
    before = len(story.membership.story())
    story.membership.handle(Found(story.now, "dns", ("c:1",)))  # which never answers
    story.run(600)
    told = story.membership.story()
    assert len(told) < before + 10
    assert [type(entry.event).__name__ for entry in story.membership.story("c:1")] == [
        "Found",
        "Unreachable",
    ]
    assert len(story.record) > 900  # the record has all


def test_the_story_is_bounded() -> None:
    story = serving("a:1")
    for number in range(700):
        story.membership.handle(Found(story.now, "dns", (f"c:{number + 1}",)))
    told = story.membership.story()
    assert len(told) == 500
    assert isinstance(told[-1].event, Found)
    assert told[-1].event.addresses == ("c:700",)


def test_an_impossible_transition_raises_with_the_story() -> None:
    story = Story("a:1").start("a:1")
    with pytest.raises(MembershipError, match="cannot become IN: it is SEEN") as error:
        Membership.handle(story.membership, Formed(0.0, ("a:1",)))
    assert "Formed workers=('a:1',)" in str(error.value)


def test_a_broken_invariant_raises_with_the_story() -> None:
    story = serving("a:1", "b:1")
    one, other = story.membership.peers
    other.order = one.order
    other.instance = one.instance
    one.place = None
    with pytest.raises(MembershipError) as error:
        story.membership.check()
    for problem in ("2 peers have the place 0", "2 peers have the process", "its place is None"):
        assert problem in error.value.problem
    assert "Form(workers=('a:1', 'b:1')" in str(error.value)


def test_a_serving_set_that_is_not_in_is_a_broken_invariant() -> None:
    story = serving("a:1")
    story.membership.peers[0].state = PeerState.LOST
    with pytest.raises(MembershipError, match=r"serves with \('a:1',\), and the peers in are \(\)"):
        story.membership.check()


def test_an_entry_in_words() -> None:
    story = Story("a:1").start("a:1")
    story.run(1)
    story.lose("a:1").run(1)
    text = story.membership.story.text()
    assert "Described address='a:1' name='a'" in text
    assert "a:1: SEEN to READY (it answers, and may be taken in)" in text
    assert "= Wait(until=" in text
    lost = next(entry for entry in story.membership.story("a:1") if isinstance(entry.event, Lost))
    assert [(move.before, move.after) for move in lost.moves] == [
        (PeerState.IN, PeerState.SEEN),
        (PeerState.SEEN, PeerState.LOST),
    ]
    assert isinstance(story.decide(), Wait)


def test_events_and_entries_are_values() -> None:
    event = Described(1.0, "a:1", "a", "i", GIB)
    assert dataclasses.replace(event, at=2.0) == Described(2.0, "a:1", "a", "i", GIB)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.at = 3.0  # type: ignore[misc]
