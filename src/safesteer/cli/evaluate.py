"""``safesteer eval``: refusal rates and benchmark scores of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safesteer.cli.options import (
    Base,
    Force,
    GivenSettings,
    Quiet,
    RunOrModel,
    TeacherOfRun,
    chosen_variant,
    with_settings,
)


@with_settings
def evaluate(
    settings: GivenSettings,
    target: RunOrModel,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results to this file.")
    ] = None,
    show_completions: Annotated[
        bool,
        typer.Option(
            "--show-completions", help="Print three answers per prompt set, harmful ones included."
        ),
    ] = False,
    base: Base = False,
    teacher: TeacherOfRun = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Measure how often a model refuses, and its benchmark scores.

    The model is a run's aligned model, its base or teacher, or any other model. Without settings,
    the evaluation stage of the run is finished or shown. With settings, such as --limit, the model
    is measured anew and the run stays as it is. --benchmarks measures only the benchmarks that it
    names, and not the prompt sets.
    """
    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import completions, evaluation
    from safesteer.errors import SafeSteerError
    from safesteer.files import check_output, write_json
    from safesteer.runs.target import find_target

    if json_file is not None:
        check_output(json_file, "--json", force=force)
    variant = chosen_variant(base, teacher)
    found = find_target(target, **settings.arguments())
    named = settings.sections.get("evaluate", {}).get("benchmarks")
    with make_reporter(quiet) as reporter:
        if settings or not found.is_run:  # else the run itself prints its heading
            reporter.start(target)
        from safesteer.evaluate.suite import unfinished
        from safesteer.pipeline.evaluate import evaluate_target

        result = evaluate_target(
            found, variant, changed=bool(settings), benchmarks=named, reporter=reporter
        )
        reporter.finish()
        if json_file is not None and not result.missing:
            write_json(json_file, result.to_json())
        reporter.console.print(evaluation(result.results))
        if show_completions:
            for line in completions(result.samples):
                reporter.console.print(line, soft_wrap=True)
        if result.missing:
            raise SafeSteerError(unfinished(result.missing))
