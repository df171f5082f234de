"""A command at a terminal of its own, driven by pexpect.

pexpect's own `spawn` forks this process, which runs gRPC's threads; subprocess does not run Python
code in the child.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from types import TracebackType

from harness import clean_environ
from pexpect import EOF, fdpexpect

HEARTH = (sys.executable, "-m", "hearth.cli.main")
UP, LEFT, ENTER = "\x1b[A", "\x1b[D", "\r"
CTRL_C, CTRL_D = "\x03", "\x04"
# "> ", and how prompt_toolkit places the cursor behind it.
PROMPT = ">(\\x08|\x1b\\[2C| )"


class TerminalCommand:
    """`hearth ARGUMENTS` at a terminal of 40 rows; `with` ends it."""

    def __init__(
        self,
        *arguments: str,
        environ: Mapping[str, str],
        seconds: float = 60.0,
        columns: int = 300,
        before: tuple[str, ...] = (),
    ) -> None:
        """seconds: limit of one `expect`. before: a command that runs it."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [*before, "setsid", "--ctty", *HEARTH, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=clean_environ({"TERM": "xterm", **environ}),
        )
        os.close(slave)
        self._screen = fdpexpect.fdspawn(master, encoding="utf-8", timeout=seconds)

    def send(self, text: str) -> None:
        """Press keys."""
        self._screen.send(text)

    def expect(self, pattern: str) -> str:
        """Wait for a regular expression; what was on the screen before it and with it."""
        self._screen.expect(pattern)
        return str(self._screen.before) + str(self._screen.after)

    def finish(self) -> int:
        """Wait for its end; the exit code."""
        self._screen.expect(EOF)
        return self.process.wait(30)

    def __enter__(self) -> TerminalCommand:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._screen.close()


def press(child: TerminalCommand, *keys: str) -> None:
    """Press keys when `hearth chat` asks for a message."""
    child.expect(PROMPT)
    child.send("".join(keys))
