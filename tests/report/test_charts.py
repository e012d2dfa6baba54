"""Charts: figures at their places, and no text that is not escaped."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from safesteer.report import charts


def parse(markup: str) -> ET.Element:
    return ET.fromstring(str(markup).replace("&#34;", "&quot;").replace("&#39;", "&apos;"))


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.4), (0.0, 0.0), (1.0, 1.0)])
def test_intervals_stand_where_their_values_are(low, high):
    bar = charts.Bar("aligned", (low + high) / 2, low, high, 'x <"&')
    root = parse(charts.intervals([bar], (0.0, 1.0), "<name>"))
    whisker = next(e for e in root.iter() if e.get("class") == "whisker")
    assert float(whisker.get("x1")[:-1]) == pytest.approx(100 * low)
    assert float(whisker.get("x2")[:-1]) == pytest.approx(100 * high)
    assert "<name>" in root.get("aria-label")


def test_marks_differ_by_shape():
    assert len({re.sub(r"[\d.,\s-]", "", charts.shape(m)) for m in ("base", "aligned")}) == 2
    assert charts.shape("teacher") != charts.shape("aligned")
