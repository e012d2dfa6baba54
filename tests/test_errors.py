"""Text that is safe to show. (pytest tests/test_errors.py)"""

from __future__ import annotations

import pytest

from safesteer.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x9b0m", r"\x1b[31mred\x9b0m"),
        ("a\x00b\x07c\x08d\x7f", r"a\x00b\x07c\x08d\x7f"),
        ("safe\ru\u202egnp.exe\u2066", r"safe\x0du\u202egnp.exe\u2066"),
        ("half \ud800, \udcff", r"half \ud800, \udcff"),
        ("two\r\nlines\tand [bold]", "two\nlines\tand [bold]"),
        ("naïve 東京 👩\u200d🔬", "naïve 東京 👩\u200d🔬"),
    ],
)
def test_what_a_screen_would_obey_is_spelled_out(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_one_line_stays_one_line():
    assert printable("a\r\nb\nc", lines=False) == r"a\nb\nc"
