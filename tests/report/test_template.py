"""Templates: in the package, with figures that do not break over lines."""

from __future__ import annotations

from pathlib import Path

from safesteer.report.template import tight


def test_figures_do_not_break_over_lines():
    assert tight("6.7% (3-16, n = 60)") == "6.7% (3\u201316, n\u00a0=\u00a060)"


def test_templates_are_in_the_package():
    import safesteer.report

    folder = Path(safesteer.report.__file__).parent
    names = {path.name for path in folder.iterdir()}
    assert {"page.html.j2", "compare.html.j2", "card.md.j2", "style.css", "filter.js"} <= names
