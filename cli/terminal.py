"""Lines that a person types: editing, history and pasted text, by prompt_toolkit."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.common import system_files

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

# A history that is larger keeps its newer half.
_MAX_HISTORY_BYTES = 1 << 20


class Terminal:
    """Reads messages from the terminal. commands: the words that the Tab key completes."""

    def __init__(self, commands: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter

        # No questions about the cursor's place: the answers of slow terminals look like typed text.
        os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
        self._session: PromptSession[str] = PromptSession(
            history=_history(history_file()),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            key_bindings=_keys(),
            prompt_continuation="  ",
        )

    def read(self) -> str:
        """One message; text pasted with newlines is one too.

        Raises EOFError for Ctrl-D on an empty line, KeyboardInterrupt for Ctrl-C.
        """
        return self._session.prompt("> ")


def history_file() -> Path:
    """The file of this user's messages: ~/.local/state/hearth/chat_history."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
    return Path(base) / "hearth" / "chat_history"


def _history(path: Path) -> History:
    """The history in a file that only its owner can read; in memory where there can be none."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | system_files.AS_IT_IS, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return InMemoryHistory()
            system_files.make_private(file)
        finally:
            os.close(file)
        _shorten(path)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _shorten(path: Path) -> None:
    """Keep the newer half of a history that has grown large. Entries begin with a line "# TIME"."""
    if path.stat().st_size <= _MAX_HISTORY_BYTES:
        return
    with path.open("rb") as file:
        file.seek(-_MAX_HISTORY_BYTES // 2, os.SEEK_END)
        kept = file.read(_MAX_HISTORY_BYTES)
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600, exist_ok=False)
    new.write_bytes(kept[max(0, kept.find(b"\n# ")) :])
    new.replace(path)


def _keys() -> KeyBindings:
    """Alt-Enter begins a new line in a message; Enter sends it."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
