"""A plot of losses as SVG, which every browser shows. By hand: it is two lines and two axes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 400, 60, 40
COLOURS = ("#1f77b4", "#d62728")
Series = Sequence[tuple[float, float]]


def loss_plot(title: str, lines: dict[str, Series]) -> str:
    """lines: name to (step, loss) points; those without points are left out."""
    drawn = {name: points for name, points in lines.items() if points}
    every = [point for points in drawn.values() for point in points] or [(0.0, 0.0)]
    right = max(step for step, _ in every) or 1.0
    low, high = min(loss for _, loss in every), max(loss for _, loss in every)
    spread = high - low or 1.0

    def place(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 20) * step / right
        return x, 40 + (HEIGHT - BOTTOM - 50) * (high - loss) / spread

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for tick in range(5):
        loss, step = low + spread * tick / 4, right * tick / 4
        (x, _), (_, y) = place(step, low), place(0, loss)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - 20}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
        below = HEIGHT - BOTTOM + 20
        parts.append(f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{step:.0f}</text>')
    for number, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        x = WIDTH - 160
        parts.append(f'<text x="{x}" y="{22 + 16 * number}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
