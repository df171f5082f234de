"""Finds stop texts in text that arrives in pieces, and holds back a possible beginning of one."""

from collections.abc import Sequence


class StopMatcher:
    """Matches several stop texts at once, one Knuth-Morris-Pratt automaton each.

    Works character by character, so the output does not depend on the borders of tokens. The first
    stop text to be completed ends the output just before it (of several completed by one
    character, the longest). What `feed` and `flush` return never contains a stop text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._failure = [_failure_function(stop) for stop in self._stops]
        # For each stop text: the length of its longest prefix that ends the text so far.
        self._matched = [0] * len(self._stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Adds text; returns the text that can be sent, and True if a stop text has ended it."""
        if not self._stops:
            return text, False
        for i, character in enumerate(text):
            for j, stop in enumerate(self._stops):
                matched = self._matched[j]
                while matched and stop[matched] != character:
                    matched = self._failure[j][matched - 1]
                matched += stop[matched] == character
                if matched == len(stop):
                    before = self._held + text[: i + 1]
                    self._held = ""
                    return before[: len(before) - len(stop)], True
                self._matched[j] = matched
        self._held += text
        safe = len(self._held) - max(self._matched)
        out, self._held = self._held[:safe], self._held[safe:]
        return out, False

    def flush(self) -> str:
        """Returns the text held back, at the end of the text."""
        out, self._held = self._held, ""
        return out


def _failure_function(stop: str) -> list[int]:
    """For each prefix of `stop`: the length of its longest border (proper prefix and suffix)."""
    failure = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = failure[length - 1]
        length += stop[i] == stop[length]
        failure[i] = length
    return failure
