"""`safesteer chat`. (pytest tests/cli)"""

from __future__ import annotations

import io
import sys

import pytest


def test_chat_shows_both_sides(safesteer, finished_run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\nAnd now?\n/quit\nnot read\n"))
    outcome = safesteer("chat", finished_run, "--max-new-tokens=3")
    assert outcome.code == 0
    for name in ("base", "aligned"):
        assert outcome.out.count(f"{name}>") == 2


def test_a_byte_that_is_no_text_is_said_and_survived(safesteer, finished_run, monkeypatch):
    for encoding, errors in (("utf-8", "strict"), ("ascii", "surrogateescape")):
        typed = io.BytesIO(b"Hel\xfflo\nAnd now?\n")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed, encoding, errors))
        outcome = safesteer("chat", finished_run, "--max-new-tokens=2")
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("base>") == 2
        assert outcome.out.count("note: bytes that are not text were read as \ufffd") == 1


def test_a_conversation_longer_than_the_model_reads_is_said(safesteer, finished_run, monkeypatch):
    typed = "Hello\n" + "Hello there. " * 400 + "\nHi\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    outcome = safesteer("chat", finished_run, "--max-new-tokens=3")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("base>") == 3
    said = "(no answer: the conversation is longer than the model's positions. Try: /reset"
    assert " ".join(outcome.out.split()).count(said) == 2  # of base and aligned


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_model_that_is_not_there_is_said_before_a_heading(safesteer, tmp_path, command):
    asked = tmp_path / "prompts.txt"
    asked.write_text("Name a color")
    files = ["--prompts", asked, "--output", tmp_path / "x.jsonl"] if command == "generate" else []
    outcome = safesteer(command, "./" + "x" * 5000, *files)
    assert outcome.code == 2 and not outcome.out and len(outcome.err) < 400
