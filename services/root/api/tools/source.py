"""Text that arrives in pieces, read by generators: each waits with `yield` for more.

What a reader decides depends on the text alone, never on the borders of its pieces.
"""

import re
from collections.abc import Generator, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")
# A reader that waits for more text and returns a value.
Reading: TypeAlias = Generator[None, None, T]

_SPACE = re.compile(r"\s*")
# The next character that counts inside a string of either quote, and outside of strings.
_IN_STRING = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}
_STRUCTURE = {
    '"': re.compile(r'["{}\[\]]'),
    "\"'": re.compile(r"[\"'{}\[\]]"),
}
# Deeper JSON is not read.
MAX_DEPTH = 64


class Source:
    """The text so far, and the place up to which it has been read."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        # No more text comes.
        self.ended = False

    def add(self, text: str) -> None:
        """More text."""
        self.text += text

    def forget(self) -> None:
        """Drops what has been read, now and then; for readers that hold no places in the text."""
        if self.at > 1 << 12:
            self.text, self.at = self.text[self.at :], 0

    def more(self, beyond: int) -> Reading[bool]:
        """Waits until there are more than `beyond` characters; False where the text ends first."""
        while len(self.text) <= beyond:
            if self.ended:
                return False
            yield
        return True

    def space(self) -> Reading[str]:
        """White space, read and returned."""
        end = self.at
        while True:
            found = _SPACE.match(self.text, end)
            end = found.end() if found else end
            if not (yield from self._at_end(end)):
                break
        text, self.at = self.text[self.at : end], end
        return text

    def _at_end(self, place: int) -> Reading[bool]:
        """Waits where the text so far ends at `place`; True if more has come."""
        if place < len(self.text) or self.ended:
            return False
        yield
        return True

    def starts(self, literal: str) -> Reading[bool]:
        """Test whether the text goes on with `literal`; nothing is read."""
        while True:
            have = self.text[self.at : self.at + len(literal)]
            if have == literal:
                return True
            if self.ended or not literal.startswith(have):
                return False
            yield

    def skip(self, literal: str) -> Reading[bool]:
        """Reads `literal` if the text goes on with it."""
        found = yield from self.starts(literal)
        if found:
            self.at += len(literal)
        return found

    def skip_after_space(self, literal: str) -> Reading[bool]:
        """Reads white space and `literal`, or nothing."""
        start = self.at
        yield from self.space()
        if literal and (yield from self.skip(literal)):
            return True
        self.at = start
        return False

    def until(self, literal: str, limit: int | None = None) -> Reading[str | None]:
        """Reads up to `literal` and over it; the text before it.

        None, and nothing is read, where it does not come within `limit` characters.
        """
        searched = self.at
        while True:
            place = self.text.find(literal, searched)
            end = len(self.text) if place < 0 else place
            if limit is not None and end - self.at > limit:
                return None
            if place >= 0:
                text, self.at = self.text[self.at : place], place + len(literal)
                return text
            if self.ended:
                return None
            searched = max(self.at, len(self.text) - len(literal) + 1)
            yield

    def brackets(self, quotes: str = '"') -> Reading[str | None]:
        """Reads from a bracket to the one that closes it, as in JSON; None if it is not closed.

        quotes: the characters around strings, `"` or `"'`.
        """
        place, depth, quote = self.at, 0, ""
        while True:
            text = self.text
            while True:
                found = (_IN_STRING[quote] if quote else _STRUCTURE[quotes]).search(text, place)
                if found is None:
                    place = len(text)
                    break
                if found[0] == "\\":
                    if found.end() == len(text):
                        place = found.start()  # the escaped character is still to come
                        break
                    place = found.end() + 1
                    continue
                place = found.end()
                if found[0] in quotes:
                    quote = "" if quote else found[0]
                    continue
                depth += 1 if found[0] in "{[" else -1
                if depth > MAX_DEPTH:
                    return None
                if depth <= 0:
                    whole, self.at = text[self.at : place], place
                    return whole
            if self.ended:
                return None
            yield


def longest_beginning(text: str, at: int, literals: Sequence[str]) -> int:
    """The length of the longest end of `text` (from `at` on) with which a literal begins."""
    longest = max(map(len, literals), default=0)
    for start in range(max(at, len(text) - longest + 1), len(text)):
        end = text[start:]
        if any(literal.startswith(end) for literal in literals):
            return len(end)
    return 0
