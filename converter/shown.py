"""Values of files in error messages, in bounded time and size."""

import reprlib
from typing import Any

_LONGEST_TEXT = 80
_MAX_BITS = 256


class _Short(reprlib.Repr):
    """The first parts of a value, two levels deep: one that holds another twice doubles a repr."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 4
        self.maxstring = self.maxother = _LONGEST_TEXT

    def repr_int(self, x: int, level: int) -> str:
        # Decimals of a long number take quadratic time, and Python refuses them.
        return repr(x) if x.bit_length() <= _MAX_BITS else f"a number of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= _LONGEST_TEXT else f"{x[:_LONGEST_TEXT]!r}..."


def shown(value: Any) -> str:
    """`value` as an error shows it: its repr, cut where it is long or deep."""
    return _Short().repr(value)
