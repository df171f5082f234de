"""Line charts as SVG: a few series with axes and a legend each, side by side. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 34, 46
_COLOURS = ("#d9622b", "#2b6cb0", "#2f855a", "#805ad5", "#b7791f", "#4a5568")
_TICKS = 5
# Values that are drawn.
_LEAST, _MOST = 1e-12, 1e15


@dataclass(frozen=True, slots=True)
class Series:
    """A named line."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over the same axes, which begin at 0."""

    title: str
    x: str
    y: str
    series: Sequence[Series]


def svg(charts: Sequence[Chart]) -> str:
    """The charts in one row, as the text of an SVG file.

    Points outside 0 to 1e15 are left out.
    """
    width = _WIDTH * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" '
        f'viewBox="0 0 {width} {_HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
    ]
    for number, chart in enumerate(charts):
        parts += [f'<g transform="translate({number * _WIDTH},0)">', *_chart(chart), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _chart(chart: Chart) -> list[str]:
    lines = [
        Series(each.name, [p for p in each.points if all(0 <= value <= _MOST for value in p)])
        for each in chart.series
    ]
    points = [point for line in lines for point in line.points]
    most_x, step_x = _scale(max((x for x, _ in points), default=1.0))
    most_y, step_y = _scale(max((y for _, y in points), default=1.0))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (right - _LEFT) * x / most_x,
            bottom - (bottom - _TOP) * y / most_y,
        )

    middle = (_LEFT + right) / 2
    parts = [
        _text(middle, 16, chart.title, "middle", 'font-size="13"'),
        _text(middle, _HEIGHT - 8, chart.x, "middle"),
        _text(
            0, 0, chart.y, "middle", f'transform="translate(14,{(_TOP + bottom) / 2}) rotate(-90)"'
        ),
    ]
    for i in range(round(most_x / step_x) + 1):
        x, _ = at(i * step_x, 0)
        parts.append(_text(x, bottom + 15, f"{i * step_x:g}", "middle"))
    for i in range(round(most_y / step_y) + 1):
        _, y = at(0, i * step_y)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{i * step_y:g}", "end"))
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line.points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(line.points) < 20:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
                for x, y in (at(*point) for point in line.points)
            ]
        parts.append(
            _text(_LEFT + 10, _TOP + 14 * (number + 1), line.name, "start", f'fill="{colour}"')
        )
    return parts


def _scale(most: float) -> tuple[float, float]:
    """(end of an axis, distance of its ticks) for values up to `most`."""
    if most < _LEAST:
        return 1.0, 0.2
    rough = most / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))
    return math.ceil(most / step - 1e-9) * step, step


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    place = "" if "transform" in more else f'x="{x:.1f}" y="{y:.1f}" '
    return f'<text {place}text-anchor="{anchor}" {more}>{escape(text)}</text>'
