"""Lookup of the tokens that followed the same words earlier. Pure state."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

# Tokens of a match that are compared at most.
_LONGEST = 16
# Newest places that are compared: one token may fill a text.
_PLACES = 1024
# Texts that ended: tokens kept of one salt, and salts.
_KEPT_TOKENS = 1 << 16
_KEPT_SALTS = 8
# Between two texts; no token.
_BORDER = -1


class Text:
    """Tokens that are added at the end: i32."""

    def __init__(self) -> None:
        self._tokens = np.empty(256, np.int32)
        self.size = 0

    def extend(self, tokens: Sequence[int] | Tokens) -> None:
        """Adds tokens."""
        end = self.size + len(tokens)
        if end > len(self._tokens):
            larger = np.empty(max(end, 2 * len(self._tokens)), np.int32)
            larger[: self.size] = self.view
            self._tokens = larger
        self._tokens[self.size : end] = tokens
        self.size = end

    @property
    def view(self) -> Tokens:
        """All tokens, without a copy."""
        return self._tokens[: self.size]


def longest_match(text: Tokens, tail: Tokens) -> tuple[int, int]:
    """(length, end) of the newest among the longest places in `text` that end as `tail` ends.

    text[end - length : end] equals the last `length` tokens of `tail`; (0, 0) if the last token is
    nowhere. At most 16 tokens are compared, at the 1,024 newest places of the last token.
    """
    ends = np.flatnonzero(text == tail[-1])[-_PLACES:]
    if not len(ends):
        return 0, 0
    length = 1
    while length < min(_LONGEST, len(tail)):
        before = ends - length
        longer = ends[(before >= 0) & (text[before] == tail[-1 - length])]
        if not len(longer):
            break
        ends = longer
        length += 1
    return length, int(ends[-1]) + 1


def continuation(text: Tokens, end: int, count: int) -> tuple[int, ...]:
    """Up to `count` tokens that follow `end` in `text`, or in a border's text.

    At the end of the text they begin again at `end`: a text that repeats itself does so there.
    """
    following = text[end : end + count]
    border = np.flatnonzero(following == _BORDER)
    if len(border):
        following = following[: border[0]]
    elif 0 < len(following) < count:
        following = np.resize(following, count)
    return tuple(following.tolist())


class Recent:
    """Texts that ended, by salt: only sequences of the same salt find them."""

    def __init__(self) -> None:
        self._texts: OrderedDict[bytes, Tokens] = OrderedDict()

    def keep(self, salt: bytes, text: Tokens) -> None:
        """Adds a text; the oldest of its salt, and the salts used least recently, are dropped."""
        border = np.array([_BORDER], np.int32)
        joined = np.concatenate([self.of(salt), text[-_KEPT_TOKENS:], border])
        self._texts[salt] = joined[-_KEPT_TOKENS:]
        self._texts.move_to_end(salt)
        while len(self._texts) > _KEPT_SALTS:
            self._texts.popitem(last=False)

    def of(self, salt: bytes) -> Tokens:
        """The texts of a salt, oldest first, each followed by a border."""
        return self._texts.get(salt, np.empty(0, np.int32))
