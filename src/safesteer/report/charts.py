"""Inline SVG: functions from numbers to markup, and charts that are as wide as the page.

Colors come from style.css, so that charts follow light mode, dark mode and print. Models differ by
shape or dash as well as by color. Charts as wide as the page have no viewBox: x is in percent, so
that text keeps its size on a phone. Every text passes through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from markupsafe import escape as _escape

from safesteer.errors import printable


def escape(text: object) -> Markup:
    """`text` for HTML, with invisible characters spelled out."""
    return _escape(printable(str(text)))


@dataclass(frozen=True)
class Bar:
    """A value with its 95% interval: one row of `intervals`."""

    model: str  # base, aligned or teacher; decides color and shape
    value: float
    low: float
    high: float
    text: str  # the figure in words


def intervals(bars: Sequence[Bar], bounds: tuple[float, float], name: str) -> Markup:
    """Rows of values with whiskers on an axis over `bounds`."""
    step, top = 24, 14
    height = step * len(bars) + 8
    low, high = bounds
    parts = [
        f'<line class="grid" x1="{share}%" x2="{share}%" y1="0" y2="{height}"/>'
        for share in (0, 25, 50, 75, 100)
    ]

    def x(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    for row, bar in enumerate(bars):
        y = top + step * row
        parts.append(
            f'<g class="of-{escape(bar.model)}"><title>{escape(bar.text)}</title>'
            f'<line class="whisker" x1="{x(bar.low)}%" x2="{x(bar.high)}%" y1="{y}" y2="{y}"/>'
            f"{_mark(bar.model, x(bar.value), y)}</g>"
        )
    texts = "; ".join(bar.text for bar in bars)
    return svg(f"{name}: {texts}", "".join(parts), f'width="100%" height="{height}"', "intervals")


def _mark(model: str, x: float, y: float) -> str:
    """A model's shape, which is in pixels, at an x in percent."""
    return f'<svg x="{x}%" y="{y}" overflow="visible" class="mark">{shape(model)}</svg>'


def shape(kind: str, x: float = 0.0, y: float = 0.0, r: float = 5.0) -> str:
    """A model's mark around a point in pixels: circle (base), diamond (aligned), triangle."""
    if kind == "base":
        return f'<circle class="hollow" cx="{x:g}" cy="{y:g}" r="{r - 0.5:g}"/>'
    points: tuple[tuple[float, float], ...]
    if kind == "teacher":
        points = ((0, -r), (r, 0.8 * r), (-r, 0.8 * r))
    else:
        points = ((0, -1.2 * r), (1.2 * r, 0), (0, 1.2 * r), (-1.2 * r, 0))
    at = " ".join(f"{x + dx:.4g},{y + dy:.4g}" for dx, dy in points)
    return f'<polygon class="{"hollow" if kind == "teacher" else "solid"}" points="{at}"/>'


def log_strip(values: Sequence[tuple[str, float]], powers: tuple[int, int], name: str) -> Markup:
    """Probabilities of one token under several models, on a log scale between powers of ten."""
    parts = ['<line class="grid" x1="0" x2="100%" y1="9" y2="9"/>']
    low, high = powers

    def x(p: float) -> float:
        power = math.log10(max(p, 10.0**low))
        return round(100 * min(1.0, (power - low) / (high - low)), 2)

    at = [x(p) for _, p in values]
    parts.append(f'<line class="whisker" x1="{min(at)}%" x2="{max(at)}%" y1="9" y2="9"/>')
    for (model, _), place in zip(values, at, strict=True):
        parts.append(f'<g class="of-{escape(model)}">{_mark(model, place, 9)}</g>')
    return svg(name, "".join(parts), 'width="100%" height="18"', "strip")


def legend_mark(kind: str) -> Markup:
    """The mark of a model for a legend."""
    return Markup(
        f'<svg class="key of-{escape(kind)}" width="16" height="16" aria-hidden="true">'
        f"{shape(kind, 8, 8)}</svg>"
    )


def legend_line(style: str) -> Markup:
    """A piece of line for a legend."""
    return Markup(
        '<svg class="key" width="26" height="12" aria-hidden="true">'
        f'<line class="line-{escape(style)}" x1="1" x2="25" y1="6" y2="6"/></svg>'
    )


def svg(name: str, content: str, size: str, style: str) -> Markup:
    """A chart with its name for screen readers; `content` is already escaped."""
    return Markup(
        f'<svg class="chart {style}" {size} role="img" aria-label="{escape(name)}">{content}</svg>'
    )
