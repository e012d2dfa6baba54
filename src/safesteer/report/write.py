"""Writes report.html and README.md of a run, measuring what only the models can tell."""

from __future__ import annotations

from pathlib import Path

from safesteer.errors import InputError
from safesteer.models.locate import fingerprint
from safesteer.pipeline import Pipeline
from safesteer.report.card import render_card
from safesteer.report.findings import MEASUREMENTS, read_findings
from safesteer.report.page import render_page
from safesteer.reporter import Reporter
from safesteer.runs import RunDirectory, StageRecord
from safesteer.runs.files import write_json, write_text

PAGE, CARD = "report.html", "README.md"


def write_report(run: RunDirectory, note: str = "", *, missing_only: bool = False) -> None:
    """Make the page and the model card from the files of a run; needs neither model nor lock.

    `note` stands at the top of the page. `missing_only` leaves those alone that are there: a
    person may have edited the card.
    """
    wanted = [name for name in (PAGE, CARD) if not (missing_only and (run.path / name).exists())]
    if not wanted:
        return
    findings = read_findings(run)
    if PAGE in wanted:
        write_text(run.path / PAGE, render_page(findings, note))
    if CARD in wanted:
        write_text(run.path / CARD, render_card(findings))


def measure_and_write(pipeline: Pipeline, stage: StageRecord) -> None:
    """The work of the stage `report`."""
    from safesteer.report.measure import measure

    # A page first: there is one then, whatever happens while the models are measured.
    (pipeline.run.path / MEASUREMENTS).unlink(missing_ok=True)
    write_report(pipeline.run)
    with stage:
        write_json(pipeline.run.path / MEASUREMENTS, measure(pipeline))
        stage.add_output(MEASUREMENTS)
    write_report(pipeline.run)


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
