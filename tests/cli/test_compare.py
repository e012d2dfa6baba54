"""`safesteer compare`. (pytest tests/cli)"""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run that a test may change."""
    return shutil.copytree(finished_run, tmp_path / "copy")


def test_compare_prints_and_writes(safesteer, finished_run, run, tmp_path):
    html, file = tmp_path / "out.html", tmp_path / "out.json"
    outcome = safesteer("compare", finished_run, run, "--html", html, "--json", file)
    assert outcome.code == 0, outcome.err
    for said in ("copy", "run", "harmful requests", "Pareto front", "peak memory", "no detectable"):
        assert said in outcome.out
    content = json.loads(file.read_text("utf-8"))
    assert [entry["on_front"] for entry in content["runs"]] == [True, True]
    assert "<svg" in html.read_text("utf-8")
    one = ("compare", finished_run, "--html", tmp_path / "x", "--json", tmp_path / "x")
    assert "--html and --json name one file" in safesteer(*one).error
    given = ("compare", finished_run, file, "--json", file)
    assert "exists" in safesteer("compare", finished_run, run, "--html", html).error
    assert "a file that this command reads" in safesteer(*given, "--force").error


def test_compare_names_what_it_cannot_compare(safesteer, finished_run, run):
    assert "does not exist" in safesteer("compare", finished_run, "nowhere").error
    manifest = run / "manifest.json"
    content = json.loads(manifest.read_text("utf-8"))
    content["stages"]["evaluate"]["status"] = "interrupted"
    manifest.write_text(json.dumps(content), "utf-8")
    outcome = safesteer("compare", run)
    assert outcome.code == 2
    assert f"safesteer eval {run}" in outcome.error


def test_a_gate_on_the_change(safesteer, finished_run, run, tmp_path):
    junit = tmp_path / "gate.xml"
    given = ("compare", finished_run, run, "--require", "harmful>=-2")
    outcome = safesteer(*given, "--point", "--junit", junit)
    assert outcome.code == 0, outcome.err
    assert "passed  harmful>=-2 (copy against run): +0.0 points" in outcome.out
    assert junit.exists()
    read = safesteer("compare", finished_run, junit, *given[3:], "--junit", junit, "--force")
    assert "a file that this command reads" in read.error
    outcome = safesteer(*given)  # four prompts do not show it
    assert outcome.code == 1 and "1 of 1 requirements failed" in outcome.error
