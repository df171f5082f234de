"""`hearth chat`: a conversation in the terminal, or with the lines of a pipe."""

from __future__ import annotations

import shutil
import sys
import textwrap

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.answers import Answer, Model, Question, open_model
from hearth.cli.command import Command, Option, Options
from hearth.cli.conversation import Conversation
from hearth.common.spelling import nearest
from hearth.common.terminal import one_line

_COMMANDS = {
    "/help": "show this",
    "/exit": "leave (Ctrl-D does too)",
    "/system": "TEXT: instructions for the model from now on; without TEXT, show them",
    "/clear": "forget the conversation; the system message stays",
    "/retry": "ask the last question again",
    "/reasoning": "show the model's reasoning, or fold it",
}
# Words that people type to leave; alone, they are not sent to the model.
_LEAVING = {"exit", "quit", "bye", "/quit", "/bye", "/q", ":q"}
# Where neither the options nor the model say otherwise.
_SAMPLING = {"temperature": 0.7, "top_p": 0.9}
# Columns of a terminal, at least; a narrower one wraps by itself.
_LEAST_WIDTH = 20
_KEYS = (
    "Enter sends a message, Alt-Enter begins a new line in it, arrow keys edit and recall. Pasted "
    "text is one message. Ctrl-C stops an answer."
)


def command() -> Command:
    """The subcommand and its options."""
    params = [
        Option(
            "--system",
            metavar="TEXT",
            group=common.TEXT,
            help="system message: instructions for the model",
        ),
        common.max_tokens("tokens of one answer at most; 0: no limit but the context"),
    ]
    return Command(
        "chat",
        run,
        common.generation(params, **_SAMPLING, recommended=True),
        help="Talk with a model in the terminal. Without a terminal, every line of standard input "
        "is a message.",
        one_of=(common.SOURCES, common.EXCLUSIVE_SECURITY, common.FORMS),
        needed=(common.NEEDS_SOURCE,),
    )


def run(options: Options) -> int:
    """Read messages until the input ends; 0. Without a terminal an error ends it."""
    interactive = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
    with open_model(options, sampling=_SAMPLING) as model:
        chat = Chat(model, options.system or "", show_reasoning=interactive)
        if not model.has_chat_template:
            output.note("This model has no chat template: it continues your text.")
        if interactive:
            return talk(chat)
        for line in sys.stdin or ():
            if line.strip():
                chat.ask(line.rstrip("\n"))
    return 0


class Chat:
    """A conversation with a model: asks, prints the answers, remembers the turns."""

    def __init__(self, model: Model, system: str = "", show_reasoning: bool = False) -> None:
        self.model = model
        # Shown dim, before the answer; else folded to a note.
        self.show_reasoning = show_reasoning
        self.conversation = Conversation(model.context_size, system)
        # The last message, for /retry.
        self.question = ""

    def ask(self, question: str) -> None:
        """Print the answer to a message, or raise its error: the conversation is then as before.

        The oldest turns are dropped where the context has no room for all, which is said.
        """
        self.question = question
        before = list(self.conversation.turns)
        dropped = self.conversation.make_room(question)
        while True:
            try:
                self._answer(question, dropped)
                return
            except Exception as error:
                if not _too_long(error) or not self.conversation.drop_oldest():
                    self.conversation.turns[:] = before
                    raise
                dropped += 1

    def retry(self) -> None:
        """Ask the last question again, without its answer so far."""
        turns = self.conversation.turns
        if turns and turns[-1].question == self.question:
            del turns[-1]
        self.ask(self.question)

    def _answer(self, question: str, dropped: int) -> None:
        thoughts: list[str] = []

        def think(text: str) -> None:
            thoughts.append(text)
            if self.show_reasoning:
                output.dim(text)

        asked = (
            Question(messages=self.conversation.messages(question), on_reasoning=think)
            if self.model.has_chat_template
            else Question(self.conversation.text(question))
        )
        answer = self.model.ask(asked)
        texts: list[str] = []
        try:
            self._print(answer, texts, dropped, thoughts)
        except KeyboardInterrupt:
            answer.cancel()
        except Exception:
            if texts or (thoughts and self.show_reasoning):
                output.line()  # the error gets a line of its own
            raise
        output.line()
        used = 0
        if (ended := answer.ended) is not None:
            used = ended.prompt_tokens + len(ended.token_ids)
            if ended.reason == "context":
                output.note(
                    f"(the answer ends here: the context of {self.model.context_size} positions is "
                    "full)"
                )
        self.conversation.add(question, "".join(texts), used)

    def _print(self, answer: Answer, texts: list[str], dropped: int, thoughts: list[str]) -> None:
        for text in answer:
            if not texts and thoughts:
                self._end_reasoning(thoughts)
            if not texts and dropped:
                turns = "turn" if dropped == 1 else f"{dropped} turns"
                output.note(
                    f"(the context of {self.model.context_size} positions is full: the oldest "
                    f"{turns} of this conversation {'is' if dropped == 1 else 'are'} forgotten)"
                )
            texts.append(text)
            output.write(text)

    def _end_reasoning(self, thoughts: list[str]) -> None:
        if self.show_reasoning:
            output.write("\n\n")
        else:
            words = len("".join(thoughts).split())
            output.note(f"(reasoning of {words} words; /reasoning shows it)")


def talk(chat: Chat) -> int:
    """The conversation of a person at a terminal; 0 when it ends. An error does not end it."""
    from hearth.cli.main import report
    from hearth.cli.terminal import Terminal

    terminal = Terminal(tuple(_COMMANDS))
    output.note(
        f"{one_line(chat.model.name)}, context of {chat.model.context_size} positions. /help shows "
        "the commands; /exit or Ctrl-D leaves."
    )
    while True:
        try:
            line = terminal.read()
        except KeyboardInterrupt:
            output.note("(/exit or Ctrl-D leaves)")
            continue
        except EOFError:
            return 0
        word = line.strip().lower()
        if word == "/exit":
            return 0
        try:
            if word in _LEAVING:
                output.note("Type /exit or press Ctrl-D to leave.")
            elif word.startswith("/"):
                _obey(chat, line.strip())
            elif word:
                chat.ask(line)
        except output.OutputError:
            raise
        except Exception as error:
            if not report(error):
                raise
            output.note("(the conversation is kept: /retry asks again)")


def _obey(chat: Chat, line: str) -> None:
    """Do what a line says that begins with a slash."""
    name, _, text = line.partition(" ")
    name, text = name.lower(), text.strip()
    if name == "/help":
        show_help()
    elif name == "/system" and text:
        chat.conversation.system = text
        output.note("(the system message is set)")
    elif name == "/system":
        output.note(chat.conversation.system or "(there is no system message)")
    elif name == "/clear":
        chat.conversation.clear()
        output.note("(the conversation is forgotten)")
    elif name == "/reasoning":
        chat.show_reasoning = not chat.show_reasoning
        output.note(f"(reasoning is {'shown' if chat.show_reasoning else 'folded'} from now on)")
    elif name == "/retry" and chat.question:
        chat.retry()
    elif name == "/retry":
        output.note("(there is no question yet)")
    else:
        output.note(
            f"there is no command {name}{nearest(name, _COMMANDS)} (/help shows them; a message "
            "that begins with / needs a space before it)"
        )


def show_help() -> None:
    """Write the commands and keys in lines of the terminal's width."""
    for name, meaning in _COMMANDS.items():
        output.note(_wrapped(f"{name:10} {meaning}", 11))
    output.note(_wrapped(_KEYS, 0))


def _wrapped(text: str, indent: int) -> str:
    """A text in lines of the terminal's width, the further ones indented where there is room."""
    width = max(_LEAST_WIDTH, shutil.get_terminal_size().columns)
    further = " " * indent if width >= 2 * indent + _LEAST_WIDTH else "  "
    return textwrap.fill(text, width, subsequent_indent=further, break_on_hyphens=False)


def _too_long(error: Exception) -> bool:
    """True for the error of a conversation that is longer than the context."""
    return getattr(error, "reason", "") == "PROMPT_TOO_LONG"
