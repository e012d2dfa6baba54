"""Charts with axes: figures at their places, names apart, and escaped text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from safesteer.report import plots

finite = st.floats(-1e6, 1e6)


def parse(markup: str) -> ET.Element:
    return ET.fromstring(str(markup).replace("&#34;", "&quot;").replace("&#39;", "&apos;"))


@given(finite, st.floats(0, 1e6), st.integers(1, 6))
def test_ticks_are_round_and_cover_the_range(low, span, count):
    ticks = plots.nice_ticks(low, low + span, count)
    room = 1e-6 * max(1.0, abs(low), span)
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= low + room and ticks[-1] >= low + span - room
    assert len(ticks) <= 3 * count + 3


@given(st.lists(st.one_of(st.none(), finite), min_size=1, max_size=40))
def test_lines_stay_inside_their_frame(ys):
    markup = plots.lines(list(range(len(ys))), [plots.Line("a", "one", ys)], "a")
    if not any(y is not None for y in ys):
        assert markup == ""
        return
    for points in re.findall(r' points="([^"]+)"', markup):
        for point in points.split():
            x, y = map(float, point.split(","))
            assert -1 <= x <= 341 and -1 <= y <= 171


def test_a_long_series_gets_a_running_mean():
    assert plots.running_mean([1.0, None, 3.0]) == [1.0, 2.0, 3.0]
    long = plots.lines(list(range(30)), [plots.Line("a", "one", [1.0] * 30)], "a")
    short = plots.lines(list(range(9)), [plots.Line("a", "one", [1.0] * 9)], "a")
    assert "faint" in long and "faint" not in short


def test_a_heat_map_marks_the_choice_and_the_rejected():
    cells = [
        plots.Cell(3, 0, 1.0, "best", chosen=True),
        plots.Cell(4, 0, None, "late <layer>", rejected=True),
    ]
    root = parse(plots.heat_map(cells, [3, 4], 1, "map"))
    styles = [element.get("class") for element in root.iter()]
    assert styles.count("chosen") == 1 and styles.count("cross") == 1
    assert "late <layer>" in [element.text for element in root.iter()]


def test_names_of_runs_are_escaped_and_do_not_overlap():
    points = [(f"<run {i}>", 0.9, 0.8, i == 0) for i in range(4)]
    root = parse(plots.plane(points, "x", "y"))
    names = [element for element in root.iter() if element.get("class") == "name"]
    assert len({element.get("y") for element in names}) == 4


def test_names_of_many_runs_stay_apart_and_inside():
    points = [(f"run {i}", 0.9 + i / 1000, 0.5 + i / 1000, i == 0) for i in range(40)]
    root = parse(plots.plane(points, "x", "y"))
    names = [element for element in root.iter() if element.get("class") == "name"]
    _, _, width, height = map(float, root.get("viewBox").split())
    ys = [float(element.get("y")) for element in names]
    assert [element.text for element in names] == [f"run {i}" for i in reversed(range(40))]
    assert all(b - a >= 13 for a, b in pairwise(ys))
    assert ys[0] > 0 and ys[-1] < height
    assert all(float(element.get("x")) < width - 100 for element in names)


def test_arrows_of_both_sides_run_from_base_to_aligned():
    """Up is refused rightly, right is refused wrongly; whiskers at the intervals."""
    base = (plots.Share(0.5, 0.4, 0.6), plots.Share(0.4, 0.3, 0.5))
    aligned = (plots.Share(0.1, 0.05, 0.2), plots.Share(0.9, 0.8, 1.0))
    root = parse(plots.both_sides([("<safe>", base, aligned)], "wrongly", "rightly"))
    marks = [e for e in root.iter() if e.get("class") in ("hollow", "solid")]
    start, end = marks[0], marks[1]
    x, y = map(float, end.get("points").split()[1].split(","))
    assert float(start.get("cx")) > x and float(start.get("cy")) > y
    assert sum(e.get("class") == "whisker" for e in root.iter()) == 4
    assert "<safe>" in [e.text for e in root.iter()]
    assert "<safe>, base: 50.0%, 40.0%; <safe>, aligned: 10.0%, 90.0%" in root.get("aria-label")
