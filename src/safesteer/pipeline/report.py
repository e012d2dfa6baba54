"""Make the report of a run again, from whatever the run holds."""

from __future__ import annotations

from safesteer.errors import InputError
from safesteer.events import Reporter
from safesteer.models.files import fingerprint
from safesteer.pipeline.align import run_stages
from safesteer.pipeline.stages import Pipeline
from safesteer.report.write import write_report
from safesteer.runs.directory import RunDirectory
from safesteer.runs.target import Target


def report_run(target: Target, reporter: Reporter | None = None) -> str:
    """Write report.html and the model card of a run, finished or not.

    The models are measured if the training is done and they were not measured before.

    Returns:
        Why the models could not be measured; empty if they were, or need not be.
    """
    run = RunDirectory.load(target.path)
    pending, note = _pending(run)
    if pending:
        run_stages(target, stages=("report",), reporter=reporter)
    write_report(RunDirectory.load(target.path), note)
    return note


def _pending(run: RunDirectory) -> tuple[bool, str]:
    """Whether the models have to be measured and can be; if they cannot, why."""
    failed = "The models could not be measured:"
    trained = run.output_hashes("train")
    if not trained:
        return False, ""
    try:
        if Pipeline(run).record("report").finished:
            return False, ""
        sha256 = fingerprint(run.settings.model)["sha256"]
    except InputError as error:
        return False, f"{failed} {error}."
    if not all((run.path / name).exists() for name in trained):
        return False, f"{failed} the trained weights are no longer in the run."
    if sha256 != run.manifest["model"].get("sha256"):
        changed = f"{run.settings.model.id} is no longer the model that this run started from"
        return False, f"{failed} {changed}."
    return True, ""
