"""``safesteer eval``: refusal rates and benchmark scores of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safesteer.cli.gate import Gate, with_gate
from safesteer.cli.options import (
    AllowWorse,
    Base,
    Force,
    GivenSettings,
    Quiet,
    RunOrModel,
    TeacherOfRun,
    chosen_variant,
    with_settings,
)

if TYPE_CHECKING:
    from safesteer.pipeline.evaluate import Evaluation
    from safesteer.report.requirements import Outcome


@with_gate
@with_settings
def evaluate(
    settings: GivenSettings,
    gate: Gate,
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
    allow_worse: AllowWorse = False,
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

    A gate for CI: --require 'harmful>=90, harmless<=5' exits with 1 where a figure fails.
    """
    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import completions, evaluation
    from safesteer.errors import SafeSteerError
    from safesteer.files import check_outputs, write_json
    from safesteer.report.requirements import raise_failed
    from safesteer.runs.target import find_target
    from safesteer.runs.worse import WorseThanBase, worse_words

    check_outputs({"--json": json_file, "--junit": gate.junit}, force=force)
    variant = chosen_variant(base, teacher)
    found = find_target(target, **settings.arguments())
    named = settings.sections.get("evaluate", {}).get("benchmarks")
    with make_reporter(quiet) as reporter:
        if settings or not found.is_run:  # else the run itself prints its heading
            reporter.start(target)
        from safesteer.evaluate.suite import unfinished
        from safesteer.pipeline.evaluate import evaluate_target

        result = evaluate_target(
            found,
            variant,
            changed=bool(settings),
            benchmarks=named,
            required=gate.required,
            reporter=reporter,
        )
        reporter.finish()
        if json_file is not None and not result.missing:
            write_json(json_file, result.to_json())
        reporter.console.print(evaluation(result.results))
        if show_completions:
            for line in completions(result.samples):
                reporter.console.print(line, soft_wrap=True)
        worse = "" if allow_worse else result.worse
        outcomes = _outcomes(gate, result, worse)
        gate.report(f"eval {target}", outcomes, reporter.console)
        if result.missing:
            raise SafeSteerError(unfinished(result.missing))
        raise_failed(outcomes)
        if worse:
            raise WorseThanBase(worse_words(found.path, worse))


def _outcomes(gate: Gate, result: Evaluation, worse: str) -> list[Outcome]:
    """The outcomes of a gate; an evaluation that fails without one fails in it, too."""
    from safesteer.report.requirements import Outcome, check_figures

    if not gate.required:
        return []
    outcomes = check_figures(gate.required, result.results[result.name], point=gate.point)
    if result.missing:
        outcomes.append(Outcome("all verdicts", False, result.missing))
    if worse:
        outcomes.append(Outcome("no worse than the base", False, f"it {worse}"))
    return outcomes
