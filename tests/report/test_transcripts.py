"""Transcripts of the page: as many as fit, with their verdicts."""

from __future__ import annotations

import re

from parsed import Page

from safesteer.files import write_jsonl
from safesteer.report import transcripts
from safesteer.report.findings import read_findings
from safesteer.report.page import render_page


def test_long_transcripts_are_cut_with_a_note(new_run, monkeypatch):
    monkeypatch.setattr(transcripts, "TRANSCRIPT_CHARACTERS", 60_000)
    text = render_page(read_findings(new_run(text="word " * 2000)))
    assert len(text) < 400_000
    assert "[…]" in text
    assert re.search(r"harmful requests: first \d+ of 20; all are in eval/samples", text)


def test_answers_that_are_right_or_wrong_are_shown_as_such(new_run):
    run = new_run()
    rows = [{"id": "a", "category": "", "prompt": "2 + 2?", "completion": "4", "score": 1.0}]
    rows += [{**rows[0], "id": "b", "score": 0.0}, {**rows[0], "id": "c", "score": None}]
    write_jsonl(run.path / "eval" / "samples" / "aligned-gsm8k.jsonl", rows)
    page = Page(render_page(read_findings(run)))
    assert page.text.count("right") == 1 and page.text.count("wrong") == 1
