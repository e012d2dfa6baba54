"""Charts with two axes: lines, heat maps, clouds of points, and runs in a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from safesteer.report.charts import escape, shape, svg
from safesteer.report.words import percent

_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 170, 44, 12, 10, 24


@dataclass(frozen=True)
class Line:
    """A series of `lines`; None where there is no value.

    Attributes:
        name: for the legend.
        style: `one` (solid) or `two` (dashed).
        ys: a value per x.
    """

    name: str
    style: str
    ys: Sequence[float | None]


def lines(
    xs: Sequence[float], series: Sequence[Line], name: str, share: bool = False, smooth: bool = True
) -> Markup:
    """Series over one x axis. `share`: the y axis shows percentages from 0 to at most 1.

    Long noisy series are drawn faintly, and their running mean over them.
    """
    values = [y for line in series for y in line.ys if y is not None and math.isfinite(y)]
    if not values or not xs:
        return Markup("")
    ticks = nice_ticks(min(0.0, *values), max(values), 3)
    low, high = ticks[0], max(ticks[-1], max(values))
    if share:
        high = min(1.0, high) if max(values) <= 1 else high
    x0, x1 = min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return _LEFT + across * (_W - _LEFT - _RIGHT), _H - _BOTTOM - up * (_H - _TOP - _BOTTOM)

    parts = []
    for tick in ticks:
        if not low <= tick <= high:
            continue
        _, y = place(x0, tick)
        text = f"{100 * tick:.0f}%" if share else f"{tick:g}"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for tick in dict.fromkeys((x0, round((x0 + x1) / 2), x1)):
        x, _ = place(tick, low)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{_H - 6}" text-anchor="middle">{tick:g}</text>'
        )
    for line in series:
        smoothed = running_mean(line.ys) if smooth and len(line.ys) >= 20 else None
        parts.append(
            _path(xs, line.ys, place, f"line-{line.style}" + (" faint" if smoothed else ""))
        )
        if smoothed:
            parts.append(_path(xs, smoothed, place, f"line-{line.style}"))
    return svg(name, "".join(parts), f'viewBox="0 0 {_W} {_H}"', "lines")


def _path(xs, ys, place, style: str) -> str:  # type: ignore[no-untyped-def]
    """Polylines through the known values; a single one becomes a dot."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if y is None or not math.isfinite(y):
            pieces.append([])
        else:
            pieces[-1].append(place(x, y))
    drawn = []
    for piece in pieces:
        if len(piece) == 1:
            drawn.append(
                f'<circle class="{style} dot" cx="{piece[0][0]:.1f}" cy="{piece[0][1]:.1f}" r="2"/>'
            )
        elif piece:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
            drawn.append(f'<polyline class="{style}" points="{points}"/>')
    return "".join(drawn)


def running_mean(ys: Sequence[float | None]) -> list[float | None]:
    """Mean over a window of a tenth of the series around each value."""
    reach = max(1, len(ys) // 20)
    smoothed: list[float | None] = []
    for index in range(len(ys)):
        near = [y for y in ys[max(0, index - reach) : index + reach + 1] if y is not None]
        smoothed.append(sum(near) / len(near) if near else None)
    return smoothed


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from at or below `low` to at or above `high`."""
    if not high - low > 1e-6 * max(abs(low), abs(high), 1e-100):
        high = low + (abs(low) if abs(low) > 1e-100 else 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{step * index:.10g}") for index in range(first, last + 1)]


# Heat map ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A cell of `heat_map`; shade in [0, 1], None for one that was not measured."""

    column: int
    row: int
    shade: float | None
    text: str
    rejected: bool = False
    chosen: bool = False


def heat_map(cells: Sequence[Cell], columns: Sequence[int], rows: int, name: str) -> Markup:
    """Cells over `columns` (layer numbers, one or more) x rows, in percent of the page's width."""
    step, axis = 26, 20
    first = min(columns)
    count = max(columns) - first + 1
    width = 100 / count
    parts = [
        f'<rect class="untried" x="0" y="{row * step + 1}" width="100%" height="{step - 2}"/>'
        for row in range(rows)
    ]
    for cell in cells:
        x, y = (cell.column - first) * width, cell.row * step
        middle = f"{x + width / 2:.3f}%"
        depth = 0.0 if cell.shade is None else 0.1 + 0.9 * min(1.0, max(0.0, cell.shade))
        parts.append(
            f"<g><title>{escape(cell.text)}</title>"
            f'<rect class="cell" x="{x:.3f}%" y="{y + 1}" width="{width:.3f}%" height="{step - 2}"'
            f' style="fill-opacity:{depth:.3f}"/>'
        )
        if cell.rejected:
            parts.append(
                f'<text class="cross" x="{middle}" y="{y + 17}" text-anchor="middle">&#215;</text>'
            )
        if cell.chosen:
            parts.append(
                f'<rect class="chosen" x="{x:.3f}%" y="{y + 1}" width="{width:.3f}%"'
                f' height="{step - 2}"/>'
            )
        parts.append("</g>")
    every = next(n for n in (1, 2, 4, 5, 10, 20, 50, 100) if count / n <= 12)
    for column in range(first, first + count):
        if column % every == 0:
            x = (column - first + 0.5) * width
            parts.append(
                f'<text class="tick" x="{x:.3f}%" y="{rows * step + 15}"'
                f' text-anchor="middle">{column}</text>'
            )
    return svg(name, "".join(parts), f'width="100%" height="{rows * step + axis}"', "heat")


# Scatter -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A mark of `scatter`; `kind` as in `shape`."""

    kind: str
    x: float
    y: float
    text: str = ""
    strong: bool = False


def scatter(
    points: Sequence[Point],
    bounds: tuple[float, float, float, float],  # x low, x high, y low, y high
    name: str,
    arrows: Sequence[tuple[str, tuple[float, float], tuple[float, float]]] = (),
    height: int = 250,
) -> Markup:
    """Points without scales (principal components have no unit), and arrows of a model's class."""
    x0, x1, y0, y1 = bounds

    def place(x: float, y: float) -> tuple[float, float]:
        return 12 + (x - x0) / (x1 - x0) * (_W - 24), height - 12 - (y - y0) / (y1 - y0) * (
            height - 24
        )

    parts = [f'<rect class="frame" x="0.5" y="0.5" width="{_W - 1}" height="{height - 1}" rx="4"/>']
    for point in sorted(points, key=lambda point: point.strong):
        x, y = place(point.x, point.y)
        mark = shape(point.kind, round(x, 1), round(y, 1), 6.5 if point.strong else 3.6)
        title = f"<title>{escape(point.text)}</title>" if point.text else ""
        size = "mean" if point.strong else "one"
        parts.append(f'<g class="of-{escape(point.kind)} {size}">{title}{mark}</g>')
    for kind, start, end in arrows:
        parts.append(_arrow(kind, place(*start), place(*end)))
    return svg(name, "".join(parts), f'viewBox="0 0 {_W} {height}"', "scatter")


def _arrow(kind: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    if length < 20:  # the marks of the means would cover it
        return ""
    dx, dy = dx / length, dy / length
    # From the edge of one mark to the edge of the other.
    x0, y0, x1, y1 = start[0] + 9 * dx, start[1] + 9 * dy, end[0] - 10 * dx, end[1] - 10 * dy
    head = f"{x1:.1f},{y1:.1f} {x1 - 7 * dx + 3.5 * dy:.1f},{y1 - 7 * dy - 3.5 * dx:.1f}"
    head += f" {x1 - 7 * dx - 3.5 * dy:.1f},{y1 - 7 * dy + 3.5 * dx:.1f}"
    return (
        f'<g class="arrow of-{escape(kind)}"><line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}"'
        f' y2="{y1:.1f}"/><polygon class="solid" points="{head}"/></g>'
    )


def plane(
    points: Sequence[tuple[str, float, float, bool]],  # name, x, y in [0, 1], on the front
    x_title: str,
    y_title: str,
) -> Markup:
    """Runs in a plane of two shares, better to the top right; those on the front are filled.

    Names stand in a column beside the plane, in the order of y, a line leading to each mark: marks
    may lie close together, names must not.
    """
    left, bottom, top = 46, 40, 12
    right, line = _W - 130, 14  # where the plane ends, and the height of a name
    height = max(300, top + line * len(points) + bottom)
    xs, ys = [point[1] for point in points], [point[2] for point in points]
    x_ticks, y_ticks = _share_ticks(xs), _share_ticks(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + across * (right - left), height - bottom - up * (height - top - bottom)

    parts = []
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>'
        )
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">'
            f"{100 * tick:.3g}%</text>"
        )
    for tick in y_ticks:
        _, y = place(x_ticks[0], tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{100 * tick:.3g}%</text>"
        )
    parts.append(
        f'<text class="axis" x="{(left + right) / 2}" y="{height - 6}" text-anchor="middle">'
        f"{escape(x_title)} →</text>"
    )
    parts.append(
        f'<text class="axis" transform="rotate(-90)" x="{-(height - bottom + top) / 2}" y="10"'
        f' text-anchor="middle">{escape(y_title)} →</text>'
    )
    front = sorted(place(x, y) for _, x, y, on in points if on)
    if len(front) > 1:
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
        parts.append(f'<polyline class="front" points="{at}"/>')
    ordered = sorted(points, key=lambda point: (-point[2], point[1]))
    marks = [place(x, y) for _, x, y, _ in ordered]
    beside = _apart([y for _, y in marks], line, top, height - bottom)
    for (name, x_value, y_value, on), (x, y), name_y in zip(ordered, marks, beside, strict=True):
        kind = "aligned" if on else "base"
        shown = name if len(name) <= 20 else name[:19] + "…"
        parts.append(
            f'<g class="of-{kind}"><title>{escape(name)}: {percent(x_value)},'
            f' {percent(y_value)}</title><polyline class="leader"'
            f' points="{x:.1f},{y:.1f} {right + 4},{name_y:.1f} {right + 9},{name_y:.1f}"/>'
            f"{shape(kind, round(x, 1), round(y, 1))}"
            f'<text class="name" x="{right + 12}" y="{name_y + 4:.1f}">{escape(shown)}</text></g>'
        )
    return svg(
        f"{y_title} against {x_title}: "
        + "; ".join(f"{n} {percent(x)}, {percent(y)}" for n, x, y, _ in points),
        "".join(parts),
        f'viewBox="0 0 {_W} {height}"',
        "plane",
    )


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The ascending `places`, moved as little as a pass down and one up do, `gap` or more apart.

    They stay between `low` and `high` if there is room for all.
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else low))
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def _share_ticks(values: Sequence[float]) -> list[float]:
    """Ticks with some room around the values, inside [0, 1]."""
    room = max(0.02, 0.15 * (max(values) - min(values)))
    ticks = nice_ticks(max(0.0, min(values) - room), min(1.0, max(values) + room), 4)
    return [tick for tick in ticks if -1e-9 <= tick <= 1 + 1e-9]
