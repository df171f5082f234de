"""Finds stop texts in text that arrives in pieces, and holds back a possible beginning of one.

A control token has no text, but a stop text may name it: "<|im_end|>" stops at that token, and at
those letters too. Inside the automata such a token is one symbol.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from hearth.converter.tokenizers.base import any_of

# A character, or a control token's id.
Symbol: TypeAlias = str | int


class StopMatcher:
    """Matches several stop texts at once, one Knuth-Morris-Pratt automaton each.

    Works character by character, so the output does not depend on the borders of tokens. The first
    stop text to be completed ends the output just before it (of several completed by one
    character, the longest). What `feed` and `flush` return never contains a stop text.
    """

    def __init__(self, stops: Sequence[str], control_ids: Mapping[str, int] | None = None) -> None:
        """control_ids: names of control tokens, which stop texts may contain."""
        patterns: list[tuple[Sequence[Symbol], str]] = [(stop, stop) for stop in stops]
        named = {name: id for name, id in (control_ids or {}).items() if _in_any(name, stops)}
        patterns += [(symbols, stop) for stop in stops if (symbols := _symbols(stop, named))]
        patterns.sort(key=lambda pattern: len(pattern[0]), reverse=True)
        self._stops = [pattern for pattern, _ in patterns]
        self._names = [stop for _, stop in patterns]
        # The stop text that ended the text; None before.
        self.found: str | None = None
        # Control tokens that can complete a stop text, or be inside one.
        self.controls = frozenset(named.values())
        self._failure = [_failure_function(stop) for stop in self._stops]
        # For each stop text: the length of its longest prefix that ends the text so far.
        self._matched = [0] * len(self._stops)
        self._held: list[Symbol] = []

    def feed(self, text: str) -> tuple[str, bool]:
        """Adds text; returns the text that can be sent, and True if a stop text has ended it."""
        if not self._stops:
            return text, False
        return self._feed(text)

    def feed_control(self, token: int) -> tuple[str, bool]:
        """Adds a control token of `controls`, as `feed` adds text."""
        return self._feed([token])

    def _feed(self, symbols: Sequence[Symbol]) -> tuple[str, bool]:
        for i, symbol in enumerate(symbols):
            completed = 0
            for j, stop in enumerate(self._stops):
                matched = self._matched[j]
                while matched and stop[matched] != symbol:
                    matched = self._failure[j][matched - 1]
                matched += stop[matched] == symbol
                if matched == len(stop):
                    completed = matched
                    self.found = self._names[j]
                    break
                self._matched[j] = matched
            if completed:
                before = [*self._held, *symbols[: i + 1]]
                self._held = []
                return _text(before[: len(before) - completed]), True
        self._held += symbols
        safe = len(self._held) - max(self._matched)
        out, self._held = self._held[:safe], self._held[safe:]
        return _text(out), False

    def flush(self) -> str:
        """Returns the text held back, at the end of the text."""
        out, self._held = self._held, []
        return _text(out)


def _text(symbols: Sequence[Symbol]) -> str:
    return "".join(symbol for symbol in symbols if isinstance(symbol, str))


def _in_any(name: str, stops: Sequence[str]) -> bool:
    return bool(name) and any(name in stop for stop in stops)


def _symbols(stop: str, named: Mapping[str, int]) -> list[Symbol]:
    """The stop text with control tokens for their names; empty where it names none."""
    pattern = any_of(named)
    symbols: list[Symbol] = []
    place = 0
    for match in pattern.finditer(stop) if pattern else ():
        symbols += [*stop[place : match.start()], named[match[0]]]
        place = match.end()
    return [*symbols, *stop[place:]] if symbols else []


def _failure_function(stop: Sequence[Symbol]) -> list[int]:
    """For each prefix of `stop`: the length of its longest border (proper prefix and suffix)."""
    failure = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = failure[length - 1]
        length += stop[i] == stop[length]
        failure[i] = length
    return failure
