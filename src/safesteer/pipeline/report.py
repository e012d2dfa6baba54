"""Make the report of a run again, from whatever the run holds."""

from __future__ import annotations

from safesteer.errors import InputError
from safesteer.events import Reporter
from safesteer.models.files import fingerprint
from safesteer.pipeline.align import run_stages
from safesteer.pipeline.stages import Pipeline
from safesteer.report.write import write_report
from safesteer.runs.artifacts import changed_base
from safesteer.runs.directory import RunDirectory
from safesteer.runs.target import Target


def report_run(target: Target, reporter: Reporter | None = None) -> str:
    """Write report.html and the model card of a run, finished or not.

    The models are measured if the training is done and they were not measured before.

    Returns:
        Why the models could not be measured, or that the base has changed since; else empty.
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
        measured = Pipeline(run).record("report").finished
    except InputError as error:
        return False, f"{failed} {error}."
    try:
        sha256 = fingerprint(run.settings.model, offline=measured)["sha256"]
    except InputError as error:
        return False, "" if measured else f"{failed} {error}."
    recorded = run.manifest["model"].get("sha256")
    changed = changed_base(run.settings.model.id, str(sha256), str(recorded))
    if measured:
        note = f"The figures are those of the earlier base: {changed}."
        return False, "" if sha256 == recorded else note
    if not all((run.path / name).exists() for name in trained):
        return False, f"{failed} the trained weights are no longer in the run."
    if sha256 != recorded:
        return False, f"{failed} {changed}."
    return True, ""
