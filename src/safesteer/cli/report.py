"""``safesteer report``: the report page and the model card of a run, written again."""

from __future__ import annotations

from typing import Annotated

import typer

from safesteer.cli.options import Fresh, GivenSettings, OutputDir, Quiet, with_settings
from safesteer.cli.stages import work


@with_settings
def report(
    settings: GivenSettings,
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL",
            help="Folder of a run, finished or not; or a model, as for `run`.",
        ),
    ],
    output_dir: OutputDir = None,
    resume: Fresh = True,
    quiet: Quiet = False,
) -> None:
    """Write the report page (report.html) and the model card (README.md) of a run.

    Other stages do not run, so the run may be unfinished. Without the model's files, the page shows
    earlier measurements. For a model, or with settings, this is the same as `safesteer run`.
    """
    from safesteer.cli.reporter import make_reporter
    from safesteer.runs.target import find_target

    found = find_target(target, **settings.arguments(), output_dir=output_dir)
    if settings or not found.is_run or not resume:
        work(target, settings, output_dir, last="report", fresh=not resume, quiet=quiet)
        return
    with make_reporter(quiet) as reporter:
        from safesteer.pipeline.report import report_run
        from safesteer.runs.own_files import CARD, PAGE

        note = report_run(found, reporter)
        reporter.finish()
        if note:
            reporter.note(note)
        for name in (PAGE, CARD):
            reporter.console.print(str(found.path / name), soft_wrap=True)
