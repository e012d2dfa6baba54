"""``safesteer report RUN``: make page and model card again, from whatever a run holds."""

from __future__ import annotations

from pathlib import Path

from safesteer.errors import InputError
from safesteer.events import Reporter
from safesteer.models.files import fingerprint
from safesteer.pipeline.stages import Pipeline
from safesteer.report.write import write_report
from safesteer.runs.directory import RunDirectory


def report_run(path: Path, reporter: Reporter | None = None) -> str:
    """``safesteer report RUN``: make page and card again, from whatever the run holds.

    The models are measured if training is done and that was not done before. Returns why they
    were not, or an empty string.

    Raises InputError for a folder that is no run, and for damaged files.
    """
    told = reporter or Reporter()
    run = RunDirectory.load(path)
    note = ""
    trained = run.output_hashes("train")
    if trained:
        try:
            done = Pipeline(run).report_stage().finished
            model = None if done else fingerprint(run.settings.model)
        except InputError as error:
            done, model = False, None
            note = f"The models could not be measured: {error}."
        if model is not None and not all((path / name).exists() for name in trained):
            model = None
            note = "The models could not be measured: what was trained is no longer in the run."
        elif model is not None and model["sha256"] != run.manifest["model"].get("sha256"):
            model = None
            note = (
                f"The models could not be measured: {run.settings.model.id} is no longer the model"
                " that this run began with."
            )
        if model is not None:
            with RunDirectory.open(path, settings=run.settings, model=model) as opened:
                Pipeline(opened, told).report()
            run = RunDirectory.load(path)
    write_report(run, note)
    return note
