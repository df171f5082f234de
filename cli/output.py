"""The one place where commands write: results to standard output, notes to standard error.

On a terminal nothing in the text of a model or peer moves the cursor (common/terminal.py). A
character that the encoding lacks is replaced. A write that fails raises OutputError on standard
output, where a result is lost, and is ignored on standard error.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hearth.common.terminal import for_stdout, safe

log = logging.getLogger(__name__)

_notes_as_log = False


class OutputError(Exception):
    """Standard output cannot be written; the message says why. BrokenPipeError stays itself."""


def prepare() -> None:
    """Have unknown characters replaced in both streams, and warnings written as notes."""
    global _notes_as_log
    _notes_as_log = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # The handler of warnings where a command sets up no logging.
    logging.lastResort = _NoteHandler(logging.WARNING)


def write(text: str) -> None:
    """Write a part of a result now. Raises OutputError, BrokenPipeError."""
    if sys.stdout is None:  # started with a closed standard output
        raise OutputError("standard output is closed")
    try:
        sys.stdout.write(for_stdout(text))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: closed since
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(f"cannot write to standard output: {reason}") from None


def dim(text: str) -> None:
    """Write text that is less important: dim, where the terminal can. Raises as `write` does."""
    written = for_stdout(text)
    if sys.stdout is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        write(text)
        return
    with suppress(OSError, ValueError):
        sys.stdout.write(f"\x1b[2m{written}\x1b[0m")
    write("")


def line(text: str = "") -> None:
    """Write a line of a result. Raises OutputError, BrokenPipeError."""
    write(f"{text}\n")


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON text that standard output can carry: escaped where its encoding is not UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    unicode = encoding.lower().replace("-", "").startswith("utf")
    return json.dumps(value, ensure_ascii=not unicode, indent=indent)


def notes_as_log() -> None:
    """Have notes logged from now on: a log of JSON lines has nothing else between them."""
    global _notes_as_log
    _notes_as_log = True


def note(text: str, end: str = "\n", level: int = logging.INFO) -> None:
    """Write a line for people to standard error; progress bars there move down.

    level: where notes are logged.
    """
    if _notes_as_log:
        log.log(level, "%s", text)
        return
    if sys.stderr is None:
        return
    with suppress(OSError, ValueError), _between_bars():
        sys.stderr.write(f"{safe(text)}{end}")
        sys.stderr.flush()


def abandon() -> None:
    """Give up a standard output that failed, so that the interpreter's last flush does not."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextmanager
def _between_bars() -> Iterator[None]:
    """Clear the progress bars on standard error, and draw them again after the block."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is None:
        yield
        return
    with tqdm.tqdm.external_write_mode(file=sys.stderr):
        yield


class _NoteHandler(logging.Handler):
    """Log records as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"{record.levelname.lower()}: {record.getMessage()}")
