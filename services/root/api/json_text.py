"""JSON texts from outside: strict numbers, whole characters."""

import json
import math
import sys
from typing import Any

# An integer of more characters may be beyond a 64-bit float.
_MOST_DIGITS = 308


def loads(text: str, *, nearest: bool = False) -> Any:
    """A JSON value whose numbers are finite and whose texts have UTF-8.

    nearest: a number beyond the 64-bit floats is the largest of them, with its sign: a model may
    write any exponent, and its call is worth more than such a number. Raises ValueError or
    RecursionError.
    """
    value = json.loads(
        text,
        parse_constant=_no_constant,
        parse_float=_nearest if nearest else _finite,
        parse_int=_nearest_integer if nearest else None,
    )
    if "\\u" in text:  # a lone surrogate has no UTF-8
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def nearest_finite(value: float) -> float:
    """The finite number that is nearest to a number."""
    return min(max(value, -sys.float_info.max), sys.float_info.max)


def _nearest(text: str) -> float:
    return nearest_finite(float(text))


def _nearest_integer(text: str) -> int | float:
    return int(text) if len(text) <= _MOST_DIGITS else _nearest(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not finite; numbers are read as 64-bit floats")
    return value
