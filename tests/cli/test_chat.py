"""`safesteer chat`. (pytest tests/cli)"""

from __future__ import annotations

import io
import sys


def test_chat_shows_both_sides(safesteer, finished_run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\nAnd now?\n/quit\nnot read\n"))
    outcome = safesteer("chat", finished_run, "--max-new-tokens=3")
    assert outcome.code == 0
    for name in ("base", "aligned"):
        assert outcome.out.count(f"{name}>") == 2
