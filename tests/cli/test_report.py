"""`safesteer report`. (pytest tests/cli)"""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run that a test may change."""
    return shutil.copytree(finished_run, tmp_path / "copy")


def test_report_makes_page_and_card_again(safesteer, run):
    for name in ("report.html", "README.md"):
        (run / name).unlink()
    outcome = safesteer("report", run)
    assert outcome.code == 0, outcome.err
    for name in ("report.html", "README.md"):
        assert (run / name).is_file()
        assert str(run / name) in outcome.out
    # No prompt and no answer is printed, and none stands in the card.
    samples = (run / "eval" / "samples" / "aligned-harmful.jsonl").read_text("utf-8").splitlines()
    for row in map(json.loads, samples):
        assert row["prompt"] not in outcome.out + (run / "README.md").read_text("utf-8")


def test_report_without_the_model_says_what_is_missing(safesteer, run):
    shutil.rmtree(run / "report")
    config = run / "config.yaml"
    manifest = run / "manifest.json"
    content = json.loads(manifest.read_text("utf-8"))
    model = content["model"]["id"]
    for file in (config, manifest):
        file.write_text(file.read_text("utf-8").replace(model, "/nowhere/model"), "utf-8")
    outcome = safesteer("report", run)
    assert outcome.code == 0, outcome.err
    assert "could not be measured" in outcome.out
    page = (run / "report.html").read_text("utf-8")
    assert "could not be measured" in page
    assert 'id="states"' not in page and 'id="transcripts"' in page


def test_report_of_a_run_that_stopped(safesteer, run):
    manifest = run / "manifest.json"
    content = json.loads(manifest.read_text("utf-8"))
    content["stages"] = {"direction": content["stages"]["direction"]}
    manifest.write_text(json.dumps(content), "utf-8")
    for name in ("tokens", "train", "adapter", "eval", "report"):
        shutil.rmtree(run / name)
    outcome = safesteer("report", run, "--quiet")
    assert (outcome.code, outcome.out) == (0, "")
    page = (run / "report.html").read_text("utf-8")
    assert "has not been evaluated yet" in page and 'id="direction"' in page
    assert not (run / "adapter").exists()


def test_report_of_a_folder_without_a_run(safesteer, tmp_path):
    (tmp_path / "folder").mkdir()
    outcome = safesteer("report", tmp_path / "folder")
    assert outcome.code == 2
    assert "not a model folder" in outcome.error
