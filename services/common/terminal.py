"""Text of models and peers on a terminal: nothing in it may move the cursor or write elsewhere."""

from __future__ import annotations

import re
import sys

# Characters that a terminal acts on, or that change the order of what is shown: control characters
# of C0 and C1 but newline and tab, line separators, and Unicode's controls of direction
# (Unicode Standard Annex 9).
_UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_BREAKS = re.compile("[\t\n\r]")


def safe(text: str) -> str:
    """`text` with unsafe characters written out, such as \\x1b for escape.

    Each character is judged alone, so that a sequence in two pieces is written out too. A carriage
    return is left out: most of them stand before a newline.
    """
    return _UNSAFE.sub(_written, text)


def one_line(text: str) -> str:
    """`safe` text without line breaks and tabs: for a peer's words within a line or a table."""
    return safe(_BREAKS.sub(_escaped, text))


def for_stdout(text: str) -> str:
    """Safe text if standard output is a terminal; elsewhere a program gets `text` as it is."""
    return safe(text) if sys.stdout.isatty() else text


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode()


def _written(match: re.Match[str]) -> str:
    return "" if match.group() == "\r" else _escaped(match)
