"""The findings of a run: what its stages wrote, as they wrote it."""

from __future__ import annotations

import pytest

from safesteer.errors import InputError
from safesteer.report.findings import read_findings


@pytest.mark.parametrize(
    ("file", "content", "folder"),
    [
        ("eval/aligned.json", '{"benchmarks": []}', "eval"),
        ("eval/base.json", None, "eval"),
        ("eval/samples/aligned-harmful.jsonl", '{"prompt": "cut', "eval"),
        ("eval/samples/base-harmless.jsonl", "", "eval"),
        ("train/metrics.jsonl", '{"step": 1, "loss": "garbage"}', "train"),
        ("direction/direction.json", "{}", "direction"),
        ("tokens/safety_tokens.json", None, "tokens"),
        ("report/measurements.json", "{}", "report"),
    ],
)
def test_what_a_finished_stage_did_not_write_is_named(new_run, file, content, folder):
    run = new_run()
    path = run.path / file
    path.unlink() if content is None else path.write_text(content, "utf-8")
    problem = "is missing" if content is None else "was damaged or changed"
    said = rf"{path} {problem}.*Try: delete .*{folder} and run `safesteer run {run.path}`"
    with pytest.raises(InputError, match=said):
        read_findings(run)


def test_measurements_that_are_made_anew_are_left_out(new_run):
    run = new_run()
    (run.path / "report" / "measurements.json").unlink()
    assert read_findings(run).measurements is None


def test_files_of_a_stage_that_is_not_finished_are_not_its_results(new_run):
    """They may be those of other settings; only the steps of a training count as they come."""
    run = new_run()
    for name in ("direction", "train", "evaluate", "report"):
        run.manifest["stages"][name]["status"] = "running"
    metrics = run.path / "train" / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo', "utf-8")
    found = read_findings(run)
    assert found.direction is None and found.measurements is None
    assert found.results == {} and found.samples == {}
    assert len(found.steps) == 1 and found.tokens is not None
