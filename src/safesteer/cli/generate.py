"""``safesteer generate``: answers to a file of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safesteer.cli.options import (
    Base,
    GivenSettings,
    MaxNewTokens,
    Quiet,
    RunOrModel,
    TeacherOfRun,
    Temperature,
    chosen_variant,
    with_model_settings,
)


@with_model_settings
def generate(
    settings: GivenSettings,
    target: RunOrModel,
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts", metavar="FILE", help="Answer the prompts of this JSONL, JSON or CSV file."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            metavar="FILE",
            help='Write the answers to this file, as JSONL rows {"prompt", "completion"}.',
        ),
    ],
    column: Annotated[
        str | None,
        typer.Option(
            "--column",
            help="Read prompts from the column of this name.",
            show_default="prompt or instruction",
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    base: Base = False,
    teacher: TeacherOfRun = False,
    quiet: Quiet = False,
) -> None:
    """Write a model's answers to a file of prompts, one row per prompt in the same order.

    A row also has "thinking" where the model thinks before it answers.
    """
    from safesteer.cli.reporter import make_reporter
    from safesteer.files import write_jsonl
    from safesteer.prompts import load_prompts
    from safesteer.runs.target import find_target

    rows = load_prompts(prompts, column=column, keep_duplicates=True)
    name = chosen_variant(base, teacher)
    found = find_target(target, **settings.arguments())
    with make_reporter(quiet) as reporter:
        reporter.start(target)
        from safesteer.models.generate import Decoding
        from safesteer.runs.artifacts import load_variants

        (variant,) = load_variants(found, [name], reporter)
        answers = variant.generate(
            [row.messages for row in rows],
            Decoding(max_new_tokens, temperature),
            batch_size=found.settings.evaluate.advanced.batch_size,
            seed=found.settings.seed,
            progress=lambda done, total: reporter.progress("answers", done, total),
        )
        lines = [
            {"prompt": row.text, "completion": answer.answer}
            | ({"thinking": answer.thinking} if answer.thinking or not answer.finished else {})
            for row, answer in zip(rows, answers, strict=True)
        ]
        write_jsonl(output, lines)
        reporter.finish()
        line = f"wrote {len(rows)} answer{'s' * (len(rows) != 1)} to {output}"
        reporter.console.print(line, soft_wrap=True)
