"""SVG charts with two axes: lines, heat maps, scatter plots, and planes of two shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from safesteer.report.charts import escape, shape, svg
from safesteer.report.words import percent

_W, _H = 340, 170


@dataclass(frozen=True)
class _Frame:
    """The plotting area of a chart: edges in pixels, and the values at these edges."""

    left: float
    right: float
    top: float
    bottom: float
    xs: tuple[float, float]
    ys: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a value; the middle where an axis has no extent."""
        (x0, x1), (y0, y1) = self.xs, self.ys
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (y - y0) / (y1 - y0) if y1 > y0 else 0.5
        return (
            self.left + across * (self.right - self.left),
            self.bottom - up * (self.bottom - self.top),
        )

    def x_tick(self, x: float, text: str, *, grid: bool = False) -> str:
        """A label below the plot, and a grid line if wanted."""
        at, _ = self.place(x, self.ys[0])
        line = (
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{self.top}" y2="{self.bottom}"/>'
        )
        label = f'x="{at:.1f}" y="{self.bottom + 17}" text-anchor="middle">{text}</text>'
        return (line if grid else "") + f'<text class="tick" {label}'

    def y_tick(self, y: float, text: str) -> str:
        """A label left of the plot, and a grid line."""
        _, at = self.place(self.xs[0], y)
        ends = f'x1="{self.left}" x2="{self.right}" y1="{at:.1f}" y2="{at:.1f}"'
        label = f'x="{self.left - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>'
        return f'<line class="grid" {ends}/><text class="tick" {label}'


# Lines -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A series of `lines`."""

    name: str  # for the legend
    style: str  # `one` (solid) or `two` (dashed)
    ys: Sequence[float | None]  # a value per x; None where there is none


def lines(
    xs: Sequence[float], series: Sequence[Line], name: str, share: bool = False, smooth: bool = True
) -> Markup:
    """Series over one x axis; with `share` the y axis shows percentages, up to 100%.

    With `smooth`, long series are drawn faintly with their running mean on top.
    """
    values = [y for line in series for y in line.ys if y is not None and math.isfinite(y)]
    if not values or not xs:
        return Markup("")
    ticks = nice_ticks(min(0.0, *values), max(values), 3)
    low, high = ticks[0], max(ticks[-1], max(values))
    if share:
        high = min(1.0, high) if max(values) <= 1 else high
    frame = _Frame(44, _W - 12, 10, _H - 24, (min(xs), max(xs)), (low, high))
    parts = [
        frame.y_tick(tick, percent(tick, 0) if share else f"{tick:g}")
        for tick in ticks
        if low <= tick <= high
    ]
    middle = round((min(xs) + max(xs)) / 2)
    parts += [frame.x_tick(x, f"{x:g}") for x in dict.fromkeys((min(xs), middle, max(xs)))]
    for line in series:
        smoothed = running_mean(line.ys) if smooth and len(line.ys) >= 20 else None
        style = f"line-{line.style}"
        parts.append(_path(xs, line.ys, frame, style + (" faint" if smoothed else "")))
        if smoothed:
            parts.append(_path(xs, smoothed, frame, style))
    return svg(name, "".join(parts), f'viewBox="0 0 {_W} {_H}"', "lines")


def _path(xs: Sequence[float], ys: Sequence[float | None], frame: _Frame, style: str) -> str:
    """Polylines through the known values; an isolated value becomes a dot."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if y is None or not math.isfinite(y):
            pieces.append([])
        else:
            pieces[-1].append(frame.place(x, y))
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
    """A cell of `heat_map`; `shade` in [0, 1], None for one without a value."""

    column: int
    row: int
    shade: float | None
    text: str
    rejected: bool = False
    chosen: bool = False


def heat_map(cells: Sequence[Cell], columns: Sequence[int], rows: int, name: str) -> Markup:
    """Cells in a grid of `columns` (layer numbers) by rows, as wide as the page."""
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
    """A mark of `scatter`; `kind` is a model, as in `shape`; `strong` for a mean."""

    kind: str
    x: float
    y: float
    text: str = ""
    strong: bool = False


def scatter(
    points: Sequence[Point],
    bounds: tuple[float, float, float, float],  # x low, x high, y low, y high
    name: str,
    arrows: Sequence[tuple[str, tuple[float, float], tuple[float, float]]],  # model, from, to
) -> Markup:
    """Points without scales, as principal components have no unit, and arrows between means."""
    height = 250
    x0, x1, y0, y1 = bounds
    frame = _Frame(12, _W - 12, 12, height - 12, (x0, x1), (y0, y1))
    parts = [f'<rect class="frame" x="0.5" y="0.5" width="{_W - 1}" height="{height - 1}" rx="4"/>']
    for point in sorted(points, key=lambda point: point.strong):
        x, y = frame.place(point.x, point.y)
        mark = shape(point.kind, round(x, 1), round(y, 1), 6.5 if point.strong else 3.6)
        title = f"<title>{escape(point.text)}</title>" if point.text else ""
        size = "mean" if point.strong else "one"
        parts.append(f'<g class="of-{escape(point.kind)} {size}">{title}{mark}</g>')
    for kind, start, end in arrows:
        parts.append(_arrow(kind, frame.place(*start), frame.place(*end)))
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


# Plane -------------------------------------------------------------------------------------------


def plane(
    points: Sequence[tuple[str, float, float, bool]],  # name, x, y in [0, 1], on the front
    x_title: str,
    y_title: str,
) -> Markup:
    """Runs in a plane of two shares, better to the top right; those on the front are filled.

    Names stand in a column beside the plane, with a line to each mark, since marks may overlap.
    """
    name_height = 14
    height = max(300, 12 + name_height * len(points) + 40)
    x_ticks = _share_ticks([x for _, x, _, _ in points])
    y_ticks = _share_ticks([y for _, _, y, _ in points])
    edges = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])
    frame = _Frame(46, _W - 130, 12, height - 40, *edges)
    parts = [frame.x_tick(tick, f"{100 * tick:.3g}%", grid=True) for tick in x_ticks]
    parts += [frame.y_tick(tick, f"{100 * tick:.3g}%") for tick in y_ticks]
    parts += _axis_titles(frame, height, x_title, y_title)
    front = sorted(frame.place(x, y) for _, x, y, on_front in points if on_front)
    if len(front) > 1:
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
        parts.append(f'<polyline class="front" points="{at}"/>')
    ordered = sorted(points, key=lambda point: (-point[2], point[1]))
    heights = [frame.place(x, y)[1] for _, x, y, _ in ordered]
    beside = _apart(heights, name_height, frame.top, frame.bottom)
    parts += [_named(point, frame, y) for point, y in zip(ordered, beside, strict=True)]
    figures = "; ".join(f"{name} {percent(x)}, {percent(y)}" for name, x, y, _ in points)
    size = f'viewBox="0 0 {_W} {height}"'
    return svg(f"{y_title} against {x_title}: {figures}", "".join(parts), size, "plane")


@dataclass(frozen=True)
class Share:
    """A share in [0, 1] with its 95% interval."""

    value: float
    low: float
    high: float


def both_sides(
    arrows: Sequence[tuple[str, tuple[Share, Share], tuple[Share, Share]]],  # name, base, aligned
    x_title: str,
    y_title: str,
) -> Markup:
    """Arrows from the base to the aligned model in a plane of two shares, better to the top left.

    Whiskers are the intervals of both shares. The name of an arrow stands beside its end.
    """
    height = 300
    frame = _Frame(46, _W - 86, 12, height - 40, (0.0, 1.0), (0.0, 1.0))
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    parts = [frame.x_tick(tick, percent(tick, 0), grid=True) for tick in ticks]
    parts += [frame.y_tick(tick, percent(tick, 0)) for tick in ticks]
    parts += _axis_titles(frame, height, x_title, y_title)
    figures = []
    for name, *ends in arrows:
        places = [frame.place(x.value, y.value) for x, y in ends]
        for model, (x, y), place in zip(("base", "aligned"), ends, places, strict=True):
            words = f"{name}, {model}: {percent(x.value)}, {percent(y.value)}"
            parts.append(
                f'<g class="of-{model}"><title>{escape(words)}</title>{_whiskers(frame, x, y)}'
                f"{shape(model, round(place[0], 1), round(place[1], 1))}</g>"
            )
            figures.append(words)
        parts.append(_arrow("aligned", *places))
        parts.append(
            f'<text class="name" x="{places[1][0] + 10:.1f}" y="{places[1][1] - 8:.1f}">'
            f"{escape(name)}</text>"
        )
    words = f"{y_title} against {x_title}: {'; '.join(figures)}"
    return svg(words, "".join(parts), f'viewBox="0 0 {_W} {height}"', "plane")


def _whiskers(frame: _Frame, x: Share, y: Share) -> str:
    ends = (
        (frame.place(x.low, y.value), frame.place(x.high, y.value)),
        (frame.place(x.value, y.low), frame.place(x.value, y.high)),
    )
    return "".join(
        f'<line class="whisker" x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>'
        for (a, b), (c, d) in ends
    )


def _axis_titles(frame: _Frame, height: float, x_title: str, y_title: str) -> list[str]:
    across, down = (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2
    return [
        f'<text class="axis" {place} text-anchor="middle">{escape(title)} →</text>'
        for place, title in (
            (f'x="{across}" y="{height - 6}"', x_title),
            (f'transform="rotate(-90)" x="{-down}" y="10"', y_title),
        )
    ]


def _named(point: tuple[str, float, float, bool], frame: _Frame, name_y: float) -> str:
    """A run's mark, and its name beside the plane at the height `name_y`."""
    name, x_value, y_value, on_front = point
    x, y = frame.place(x_value, y_value)
    kind = "aligned" if on_front else "base"
    shown = name if len(name) <= 20 else name[:19] + "…"
    right = frame.right
    leader = f"{x:.1f},{y:.1f} {right + 4},{name_y:.1f} {right + 9},{name_y:.1f}"
    return (
        f'<g class="of-{kind}">'
        f"<title>{escape(name)}: {percent(x_value)}, {percent(y_value)}</title>"
        f'<polyline class="leader" points="{leader}"/>{shape(kind, round(x, 1), round(y, 1))}'
        f'<text class="name" x="{right + 12}" y="{name_y + 4:.1f}">{escape(shown)}</text></g>'
    )


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The ascending `places` moved to be at least `gap` apart, within [low, high] if possible."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else low))
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def _share_ticks(values: Sequence[float]) -> list[float]:
    """Ticks around the values, inside [0, 1]."""
    room = max(0.02, 0.15 * (max(values) - min(values)))
    ticks = nice_ticks(max(0.0, min(values) - room), min(1.0, max(values) + room), 4)
    return [tick for tick in ticks if -1e-9 <= tick <= 1 + 1e-9]
