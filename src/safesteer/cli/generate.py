"""``safesteer generate``: answers to a file of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safesteer.cli.options import (
    Base,
    Debug,
    GivenSettings,
    MaxNewTokens,
    Quiet,
    RunOrModel,
    TeacherFlag,
    Temperature,
    which_model,
    with_model_settings,
)


@with_model_settings
def generate(
    settings: GivenSettings,
    target: RunOrModel,
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts", metavar="FILE", help="JSONL, JSON or CSV, column prompt or instruction."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="JSONL of {prompt, completion}.")
    ],
    base: Base = False,
    teacher: TeacherFlag = False,
    column: Annotated[
        str | None, typer.Option("--column", help="Column of the prompts, if it has another name.")
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Answer every prompt of a file, in its order: one line out per row in."""
    from safesteer.cli.reporter import make_reporter
    from safesteer.files import write_jsonl
    from safesteer.prompts import load_prompts
    from safesteer.runs.target import find_target

    name = which_model(base, teacher)
    rows = load_prompts(prompts, column=column, keep_duplicates=True)
    found = find_target(target, **settings.arguments())
    with make_reporter(quiet) as reporter:
        reporter.start(target)
        from safesteer.runs.artifacts import load_variants

        (variant,) = load_variants(found, [name], reporter)
        answers = variant.generate(
            [row.messages for row in rows],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_size=found.settings.evaluate.advanced.batch_size,
            seed=found.settings.seed,
            progress=lambda done, total: reporter.progress("answers", done, total),
        )
        lines = [
            {"prompt": row.text, "completion": said.answer}
            | ({"thinking": said.thinking} if said.thinking or not said.finished else {})
            for row, said in zip(rows, answers, strict=True)
        ]
        write_jsonl(output, lines)
        reporter.finish()
        reporter.console.print(f"{len(rows)} answers in {output}", markup=False, soft_wrap=True)
