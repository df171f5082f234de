"""Dividing a count of units into contiguous spans, in proportion to shares."""

import math
from collections.abc import Sequence

from hearth.common.types import BLOCK

# [begin, end)
Span = tuple[int, int]


def size(span: Span) -> int:
    """Units in a span."""
    return span[1] - span[0]


def scaled(span: Span, factor: int) -> Span:
    """The span in units that are `factor` times smaller."""
    return span[0] * factor, span[1] * factor


def joined(sizes: Sequence[int]) -> list[Span]:
    """Spans of these sizes, one after another from 0."""
    spans, begin = [], 0
    for count in sizes:
        spans.append((begin, begin + count))
        begin += count
    return spans


def divide(units: int, shares: Sequence[float]) -> list[Span]:
    """Cuts [0, units) into len(shares) contiguous spans in proportion to `shares`, each at least 1.

    Largest remainders first (Hamilton's method). ValueError for fewer units than shares.
    """
    if units < len(shares):
        raise ValueError(f"{units} units cannot be cut into {len(shares)} parts")
    total = math.fsum(shares)
    # One for each, the rest in proportion to the shares still missing.
    wanted = [max(0.0, share / total * units - 1) for share in shares]
    spare = units - len(shares)
    scale = spare / math.fsum(wanted) if math.fsum(wanted) > 0 else 0.0
    exact = [value * scale for value in wanted]
    sizes = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (sizes[i] - exact[i], i))
    for i in range(spare - sum(sizes)):
        sizes[by_remainder[i % len(shares)]] += 1
    return joined([count + 1 for count in sizes])


def divide_on_blocks(units: int, shares: Sequence[float]) -> list[Span]:
    """`divide` at multiples of a quantized block, if there are enough blocks."""
    unit = BLOCK if units // BLOCK >= len(shares) else 1
    spans = [scaled(span, unit) for span in divide(units // unit, shares)]
    # The last part also takes an incomplete block at the end.
    spans[-1] = (spans[-1][0], units)
    return spans


def on_blocks(spans: Sequence[Span], factor: int) -> bool:
    """True if spans of units of `factor` elements all begin at quantized blocks."""
    return all(begin * factor % BLOCK == 0 for begin, _ in spans)
