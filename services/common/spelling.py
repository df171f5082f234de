"""Hints for misspelled words: the nearest of those that are known."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# Of difflib's ratio, in which two swapped letters of four give 0.75 and no letter in common 0.
_CLOSE = 0.6


def nearest(word: str, known: Collection[str], prefix: str = "") -> str:
    """ "; did you mean ...?" for a misspelled word; "" where nothing is close.

    prefix: of all words, and no sign that two of them are alike. Case, dashes before a word, and
    whether dashes or underscores join it, count for nothing.
    """
    plain = {_plain(each.removeprefix(prefix)): each for each in sorted(known)}
    close = difflib.get_close_matches(_plain(word.removeprefix(prefix)), plain, 1, _CLOSE)
    return f"; did you mean {plain[close[0]]}?" if close else ""


def _plain(word: str) -> str:
    return word.lstrip("-").replace("_", "-").lower()
