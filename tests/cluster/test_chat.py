"""`hearth chat` at a terminal (pexpect) and with a pipe, against a root with a stand-in model."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import clean_environ
from serving_fakes import EOS, TOOL_TEMPLATE, FakeRunner, Root, says
from terminals import CTRL_C, CTRL_D, ENTER, HEARTH, LEFT, UP, TerminalCommand, press

SECONDS = 60
Chat = Callable[..., TerminalCommand]


def counting(history: tuple[int, ...]) -> int:
    """Answers "<n>": the number of user messages that the model was given."""
    text = bytes(token for token in history if token < 256).decode()
    asked, answer = text.rsplit("[assistant]", 1)
    whole = f"<{asked.count('[user]')}>"
    return ord(whole[len(answer)]) if len(answer) < len(whole) else EOS


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    """Starts `hearth chat` at a terminal; ends it with the test."""
    with ExitStack() as stack:

        def start(root: Root, *options: str) -> TerminalCommand:
            environ = {"XDG_STATE_HOME": str(tmp_path)}
            command = TerminalCommand("chat", "--root", root.address, *options, environ=environ)
            child = stack.enter_context(command)
            child.expect("/exit or Ctrl-D leaves.")
            return child

        yield start


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(FakeRunner(counting), context_size=200) as root:
        yield root


def test_a_conversation(root: Root, chat: Chat) -> None:
    child = chat(root, "--system", "be brief")
    press(child, "one", ENTER)
    child.expect("<1>")
    press(child, "two", ENTER)
    child.expect("<2>")
    press(child, "/clear", ENTER)
    child.expect("forgotten")
    press(child, "/retry", ENTER)
    child.expect("<1>")
    press(child, "/retry", ENTER)
    child.expect("<1>")
    for word in ("exit", "quit", "/bye"):
        press(child, word, ENTER)
        child.expect("Type /exit or press Ctrl-D")
    press(child, "/sytem", ENTER)
    child.expect("did you mean /system?")
    press(child, "/system", ENTER)
    child.expect("be brief")
    press(child, "/system be long", ENTER)
    child.expect("is set")
    press(child, "/help", ENTER)
    child.expect("ask the last question again")
    child.expect("arrow keys")
    press(child, "/exit", ENTER)
    assert child.finish() == 0


def test_pasted_lines_are_one_message_and_keys_edit(root: Root, chat: Chat, tmp_path: Path) -> None:
    child = chat(root)
    press(child, "\x1b[200~first line\nsecond line\n\x1b[201~")
    child.send(ENTER)
    child.expect("<1>")
    press(child, f"ac{LEFT}b", ENTER)
    child.expect("<2>")
    press(child, UP)  # recalls
    child.send(ENTER)
    child.expect("<3>")
    press(child, CTRL_D)
    assert child.finish() == 0
    history = tmp_path / "hearth" / "chat_history"
    lines = [line for line in history.read_text().splitlines() if line[:1] == "+"]
    assert lines == ["+first line", "+second line", "+", "+abc"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700


def test_a_full_context_drops_the_oldest_turns_and_says_so(root: Root, chat: Chat) -> None:
    """200 positions of a byte: a turn takes about 40, the answer has a quarter."""
    child = chat(root, "--system", "kept")
    for number in (1, 2):
        press(child, "x" * 30, ENTER)
        child.expect(f"<{number}>")
    press(child, "x" * 60, ENTER)
    child.expect("context of 200 positions is full: the oldest turn of this conversation is forgo")
    child.expect("<[12]>")
    press(child, "y" * 500, ENTER)
    child.expect(r"hearth: the prompt has \d+ tokens")
    child.expect("the conversation is kept")
    press(child, "short", ENTER)
    child.expect("<[23]>")
    press(child, CTRL_D)
    assert child.finish() == 0


def test_ctrl_c_stops_the_answer_only(chat: Chat) -> None:
    def endless(history: tuple[int, ...]) -> int:
        return ord("z")

    with Root(FakeRunner(endless, seconds=0.01), context_size=20_000, max_pages=10_000) as root:
        child = chat(root)
        press(child, CTRL_C)
        child.expect("leaves")
        press(child, "go", ENTER)
        child.expect("zzzz")
        child.process.send_signal(signal.SIGINT)
        press(child, "/exit", ENTER)
    assert child.finish() == 0


def test_a_lost_root_does_not_end_it(chat: Chat) -> None:
    with Root(FakeRunner(counting), context_size=200) as root:
        child = chat(root)
        press(child, "one", ENTER)
        child.expect("<1>")
    press(child, "two", ENTER)
    child.expect("hearth: cannot reach a root")
    child.expect("the conversation is kept: /retry asks again")
    press(child, CTRL_D)
    assert child.finish() == 0


def piped(root: Root, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HEARTH, "chat", "--root", root.address, *options],
        input=text,
        capture_output=True,
        text=True,
        env=clean_environ(),
        timeout=SECONDS,
        check=False,
    )


def test_lines_of_a_pipe_are_messages(root: Root) -> None:
    done = piped(root, "one\n\n/clear\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "<1>\n<2>\n", "")


def test_an_error_ends_a_pipe(root: Root) -> None:
    done = piped(root, "y" * 500 + "\none\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hearth: the prompt has ")


THINKING = "<think>Well then.</think>Hello."


@pytest.fixture
def thinker() -> Iterator[Root]:
    with Root(FakeRunner(says(THINKING)), chat_template=TOOL_TEMPLATE, context_size=400) as root:
        yield root


def test_reasoning_is_shown_or_folded(thinker: Root, chat: Chat) -> None:
    child = chat(thinker)
    press(child, "hi", ENTER)
    # In any number of pieces, each of them dim.
    child.expect(r"(?:\x1b\[[02]m)*".join(["", *map(re.escape, "Well then."), ""]))
    child.expect("Hello[.]")
    press(child, "/reasoning", ENTER)
    child.expect("folded from now on")
    press(child, "hi", ENTER)
    child.expect("reasoning of 2 words")
    child.expect("Hello[.]")
    press(child, "/reasoning", ENTER)
    child.expect("shown from now on")


def test_reasoning_is_not_part_of_piped_answers(thinker: Root) -> None:
    done = piped(thinker, "hi\n")
    assert (done.returncode, done.stdout) == (0, "Hello.\n")


def test_forms_of_answers(thinker: Root, tmp_path: Path) -> None:
    def answer(*options: str) -> str:
        done = piped(thinker, "hi\n", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": ["red", "green"]}))
    for given in (str(schema), json.dumps({"enum": ["red", "green"]})):
        assert json.loads(answer("--json-schema", given)) in ("red", "green")
    grammar = tmp_path / "answer.gbnf"
    grammar.write_text('root ::= "yes" | "no"\n')
    assert answer("--grammar", str(grammar)) in ("yes\n", "no\n")
    assert re.fullmatch("[0-9]{3}\n", answer("--regex", "[0-9]{3}"))
