"""Charts as SVG."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from hearth.cli.plot import Chart, Series, _scale, svg

SPACE = "{http://www.w3.org/2000/svg}"


def test_lines_are_where_their_numbers_are() -> None:
    chart = Chart("a < b", "tokens", "seconds", [Series("x & y", [(0, 0), (10, 5), (5, 2.5)])])
    root = ElementTree.fromstring(svg([chart, chart]))
    lines = root.findall(f".//{SPACE}polyline")
    assert len(lines) == 2
    corners = [tuple(map(float, point.split(","))) for point in lines[0].attrib["points"].split()]
    assert corners == [(62, 254), (406, 34), (234, 144)]
    texts = [each.text for each in root.iter(f"{SPACE}text")]
    assert {"a < b", "tokens", "seconds", "x & y", "10", "5"} <= set(texts)


@given(st.floats(1e-9, 1e12))
def test_a_scale_covers_its_values_with_few_ticks(most: float) -> None:
    end, step = _scale(most)
    assert most <= end * (1 + 1e-9)
    assert 1 <= round(end / step) <= 11
    assert math.isclose(end / step, round(end / step), rel_tol=1e-9)


@given(st.lists(st.tuples(st.floats(), st.floats(min_value=0)), max_size=5))
def test_any_numbers_make_a_file(points: list[tuple[float, float]]) -> None:
    assert ElementTree.fromstring(svg([Chart("t", "x", "y", [Series("s", points)])])) is not None
