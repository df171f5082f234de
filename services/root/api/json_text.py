"""JSON texts from outside: strict numbers, whole characters."""

import json
import math
from typing import Any


def loads(text: str) -> Any:
    """A JSON value whose numbers are finite and whose texts have UTF-8.

    Raises ValueError or RecursionError.
    """
    value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    if "\\u" in text:  # a lone surrogate has no UTF-8
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not finite; numbers are read as 64-bit floats")
    return value
