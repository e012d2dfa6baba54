"""``safesteer eval``: how often a model refuses what it should, and what it should not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safesteer.cli.options import (
    Base,
    Debug,
    GivenSettings,
    Quiet,
    RunOrModel,
    TeacherFlag,
    which_model,
    with_settings,
)


@with_settings
def evaluate(
    settings: GivenSettings,
    target: RunOrModel,
    base: Base = False,
    teacher: TeacherFlag = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")
    ] = None,
    show_completions: Annotated[
        bool, typer.Option("--show-completions", help="Print some answers, harmful ones included.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a run's aligned model, its base or teacher, or any model.

    Without settings this is the evaluation of a run. With any, such as --limit, one model is judged
    separately, and the run stays as it is. --benchmarks names all that is measured (`safesteer
    benchmarks` lists them); without it our own prompt sets are.
    """
    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import completions, evaluation
    from safesteer.evaluate.benchmarks import find_benchmark
    from safesteer.prompts import load_prompt_sets
    from safesteer.runs.target import find_target

    name = which_model(base, teacher)
    found = find_target(target, **settings.arguments())
    # What is wrong is said before torch is imported, which takes a while.
    load_prompt_sets(found.settings.prompts, found.settings.seed)
    named = settings.sections.get("evaluate", {}).get("benchmarks")
    for benchmark in found.settings.evaluate.benchmarks:
        find_benchmark(benchmark)
    with make_reporter(quiet) as reporter:
        reporter.start(target)
        from safesteer.files import write_json
        from safesteer.pipeline.evaluate import evaluate_target

        result = evaluate_target(
            found, name, changed=bool(settings), benchmarks=named, reporter=reporter
        )
        reporter.finish()
        if json_file is not None:
            write_json(json_file, result.to_json())
        reporter.console.print(evaluation(result.results))
        if show_completions:
            for line in completions(result.samples):
                reporter.console.print(line, soft_wrap=True)
