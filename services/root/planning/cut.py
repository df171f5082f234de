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


def divide_on_blocks(units: int, shares: Sequence[float], step: int = 1) -> list[Span]:
    """`divide` at multiples of `step` and of a block of 32 where there are enough of them.

    Else at multiples of 32, else anywhere.
    """
    unit = next(
        each
        for each in (math.lcm(step, BLOCK), BLOCK, 1)
        if each == 1 or units // each >= len(shares)
    )
    spans = [scaled(span, unit) for span in divide(units // unit, shares)]
    # The last part also takes an incomplete block at the end.
    spans[-1] = (spans[-1][0], units)
    return spans


def divide_heads(
    heads: int, kv_heads: int, shares: Sequence[float], step: int = 1
) -> tuple[list[Span], list[Span]]:
    """Spans of query heads and of KV heads, in proportion to `shares`; each part at least 1.

    Every part has whole KV heads with all query heads that read them. With more parts than KV
    heads, each has query heads of one KV head, which several parts then share. Cuts fall on
    multiples of `step` query heads where there are enough of them. ValueError for fewer query heads
    than shares.
    """
    group = heads // kv_heads
    parts = len(shares)
    if parts <= kv_heads:
        unit = math.lcm(step, group) // group
        if kv_heads // unit < parts:
            unit = 1
        spans = [scaled(span, unit) for span in divide(kv_heads // unit, shares)]
        spans[-1] = (spans[-1][0], kv_heads)
        return [scaled(span, group) for span in spans], spans
    if parts > heads:
        raise ValueError(f"{heads} query heads cannot be cut into {parts} parts")
    # Parts for each KV head: as equal as can be, and no more than it has query heads.
    query_spans, kv_spans = [], []
    for kv_head, (begin, end) in enumerate(divide(parts, [1.0] * kv_heads)):
        unit = step if group % step == 0 and group // step >= end - begin else 1
        for span in divide(group // unit, shares[begin:end]):
            first, last = scaled(span, unit)
            query_spans.append((kv_head * group + first, kv_head * group + last))
            kv_spans.append((kv_head, kv_head + 1))
    return query_spans, kv_spans


def on_blocks(spans: Sequence[Span], factor: int, block: int = BLOCK) -> bool:
    """True if spans of units of `factor` elements all begin at blocks of `block` elements."""
    return all(begin * factor % block == 0 for begin, _ in spans)
