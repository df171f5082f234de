"""The conversation of `hearth chat`: what is sent, and what a full context drops."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.history import FileHistory, InMemoryHistory

from hearth.cli import chat, terminal
from hearth.cli.conversation import Conversation

TEXTS = st.text(max_size=60)


def test_messages_are_in_order() -> None:
    conversation = Conversation(0, "be brief")
    conversation.add("one", "1")
    assert conversation.messages("two") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]
    assert conversation.text("two") == "be brief\none\n1\ntwo"
    assert Conversation(0).messages("x") == [{"role": "user", "content": "x"}]
    conversation.clear()
    assert conversation.text("two") == "be brief\ntwo"


def test_the_oldest_turns_are_dropped_by_their_counted_tokens() -> None:
    conversation = Conversation(100, "s")
    for number, used in enumerate((30, 50, 70)):
        conversation.add(str(number), "a", used)
    assert [turn.tokens for turn in conversation.turns] == [30, 20, 20]
    # 8 for the system message, 8 for "x", a quarter of the context for the answer: 41 of 100.
    assert conversation.make_room("x") == 1
    assert [turn.question for turn in conversation.turns] == ["1", "2"]
    assert conversation.make_room("x") == 0


def test_a_message_that_is_too_long_alone_drops_all_turns_and_not_the_system_message() -> None:
    conversation = Conversation(100, "s" * 3000)
    conversation.add("a", "b", 20)
    assert conversation.make_room("x") == 1
    assert conversation.messages("x")[0]["content"] == "s" * 3000
    assert not conversation.drop_oldest()


@given(
    st.integers(0, 400), TEXTS, st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 900)), max_size=9)
)
def test_only_the_oldest_turns_go_and_no_more_than_needed(
    context: int, system: str, turns: list[tuple[str, str, int]]
) -> None:
    conversation = Conversation(context, system)
    for question, answer, used in turns:
        conversation.add(question, answer, used)
    before = list(conversation.turns)
    dropped = conversation.make_room("question")
    assert conversation.turns == before[dropped:]
    assert conversation.system == system
    if dropped:  # without the last drop there was no room
        again = Conversation(context, system, before[dropped - 1 :])
        assert again.make_room("question") >= 1
    else:
        assert conversation.make_room("question") == 0


@pytest.mark.parametrize("kind", ["directory", "pipe", "link", "absent"])
def test_a_history_is_a_file_of_its_owner_or_is_done_without(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "state" / "chat_history", tmp_path / "target"
    path.parent.mkdir()
    target.write_text("")
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    found = terminal._history(path)
    found.store_string("secret")
    assert isinstance(found, FileHistory if kind == "absent" else InMemoryHistory)
    assert target.read_text() == ""
    if kind == "absent":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)
        assert list(terminal._history(path).load_history_strings()) == ["secret"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_history_keeps_its_newer_half(tmp_path: Path) -> None:
    path = tmp_path / "chat_history"
    path.write_text("".join(f"\n# 2026-01-01 00:00:00\n+message {n}\n" for n in range(40_000)))
    kept = list(terminal._history(path).load_history_strings())
    assert kept[0] == "message 39999"
    assert 400_000 < path.stat().st_size <= 1 << 19
    assert path.read_text().startswith("\n# 2026")
    assert kept == [f"message {n}" for n in range(39_999, 39_999 - len(kept), -1)]


@pytest.mark.parametrize("columns", [5, 34, 200])
def test_the_help_fits_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    chat.show_help()
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= max(columns, 20)
    assert " ".join("\n".join(lines).split()).endswith("Ctrl-C stops an answer.")
    if columns == 34:
        place = lines.index("/retry     ask the last question")
        assert lines[place + 1] == "  again"
