"""`safesteer export --quantize` of a whole run: the table, the record, losses. (pytest tests/cli)

With llama.cpp's real tools where they are installed, else with stand-ins.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import pytest

from safesteer.export import quantize as tool
from safesteer.export.llama_cpp import is_installed
from safesteer.pipeline import quantize

REAL = is_installed() and tool._tool() is not None


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the run: its record stays here."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def stand_ins(run, serve, monkeypatch):
    """No tools: files are copied, and a server answers as the variant that a test sets."""
    answers = {"Q4_0": "base"}

    @contextmanager
    def serving(file):
        variant = next((v for name, v in answers.items() if name in file.name), "aligned")
        rows = {}
        for key in ("harmful", "harmless"):
            text = (run / "eval" / "samples" / f"{variant}-{key}.jsonl").read_text("utf-8")
            rows |= {row["prompt"]: row["completion"] for row in map(json.loads, text.splitlines())}
        yield serve(lambda question, number: rows[question]).url

    monkeypatch.setattr(quantize, "serving", serving)
    monkeypatch.setattr(quantize, "quantize", lambda file, target, name: shutil.copy(file, target))
    monkeypatch.setattr(quantize, "require_tools", lambda: None)
    return answers


def export(safesteer, run, output, *more):
    words = ["--format", "gguf", "--allow-worse", "--output", output, *more]
    return safesteer("export", run, *words)


def test_a_file_that_loses_is_deleted_and_said(safesteer, run, tmp_path, stand_ins):
    output = tmp_path / "m.gguf"
    outcome = export(safesteer, run, output, "--quantize", "Q8_0,Q4_0")
    assert outcome.code == 1 and "Q4_0 answers" in outcome.err and "--allow-loss" in outcome.err
    assert {path.name for path in tmp_path.glob("*.gguf")} == {"m.gguf", "m-Q8_0.gguf"}
    record = json.loads((run / quantize.RECORD).read_text("utf-8"))
    assert [row["format"] for row in record["files"]] == ["in the run", "float32", "Q8_0", "Q4_0"]
    assert [row["kept"] for row in record["files"]] == [True, True, True, False]
    assert all(row["alike"] == row["answers"] for row in record["files"][:3])
    for word in ("harmful refused", "agreement", "deleted", "Q8_0"):
        assert word in outcome.out
    outcome = export(safesteer, run, output, "--quantize", "Q8_0,Q4_0", "--allow-loss", "--force")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "m-Q4_0.gguf").is_file()


def test_wrong_input_costs_no_export(safesteer, run, tmp_path, stand_ins):
    output = tmp_path / "m.gguf"
    outcome = safesteer(
        "export", run, "--format", "merged", "--output", tmp_path / "m", "--quantize", "Q8_0"
    )
    assert outcome.code == 2 and "does not apply to --format merged" in outcome.error
    outcome = safesteer("export", run, "--format", "commands", "--quantize", "Q8_0")
    assert outcome.code == 2 and "does not apply to --format commands" in outcome.error
    assert "is for --quantize" in export(safesteer, run, output, "--allow-loss").error
    assert "names no type" in export(safesteer, run, output, "--quantize", ",").error
    outcome = export(safesteer, run, output, "--quantize", "Q9")
    assert outcome.code == 2 and "unknown type" in outcome.error
    (tmp_path / "m-Q8_0.gguf").write_text("mine")
    outcome = export(safesteer, run, output, "--quantize", "Q8_0", "--force")
    assert outcome.code == 2 and "no earlier export" in outcome.error
    assert not output.exists()


@pytest.mark.skipif(not REAL, reason="llama-quantize and xllamacpp are not installed")
def test_the_real_tools(safesteer, run, tmp_path):
    """The tiny model's answers are no words, half of which no server can send as it made them."""
    output = tmp_path / "m.gguf"
    outcome = export(safesteer, run, output, "--quantize", "Q8_0", "--allow-loss")
    assert outcome.code == 0, outcome.err
    _, whole, small = json.loads((run / quantize.RECORD).read_text("utf-8"))["files"]
    assert 0 < small["bytes"] < whole["bytes"] and whole["answers"] == small["answers"] == 8
    assert whole["alike"] >= 4 and small["kept"]
    assert (tmp_path / "m-Q8_0.gguf").stat().st_size == small["bytes"]
