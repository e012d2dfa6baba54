"""``safesteer generate``: answers to a file of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safesteer.cli.options import (
    Base,
    Force,
    GivenSettings,
    MaxNewTokens,
    Quiet,
    RunOrModel,
    TeacherOfRun,
    Temperature,
    chosen_variant,
    path,
    with_model_settings,
)

if TYPE_CHECKING:
    from safesteer.models.chat import Response
    from safesteer.prompts.load import Prompt
    from safesteer.runs.target import Target


@with_model_settings
def generate(
    settings: GivenSettings,
    target: RunOrModel,
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts",
            metavar="FILE",
            parser=path,
            help="Answer the prompts of this file: JSONL, CSV, text...",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            metavar="FILE",
            parser=path,
            help='Write the answers to this file, as JSONL rows {"prompt", "completion"}. Until all'
            " are there, they lie in FILE.partial.",
        ),
    ],
    column: Annotated[
        str | None,
        typer.Option(
            "--column",
            help="Read prompts from the column of this name.",
            show_default="prompt, instruction, messages or another known name",
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    base: Base = False,
    teacher: TeacherOfRun = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write a model's answers to a file of prompts, one row per prompt in the same order.

    A prompt that the model's positions do not hold is skipped: its completion is null, and
    "skipped" says why. A row also has "thinking" where the model thinks before it answers. The same
    command resumes after an interruption.
    """
    from safesteer.cli.reporter import make_reporter
    from safesteer.inference.answer_file import AnswerFile
    from safesteer.prompts import load_prompts
    from safesteer.runs.target import find_target

    name = chosen_variant(base, teacher)
    found = find_target(target, **settings.arguments())
    found.check_model()
    with make_reporter(quiet) as reporter:
        rows = load_prompts(prompts, column=column, keep_duplicates=True)
        asked = [row.messages for row in rows]
        facts = _facts(found, rows, name, max_new_tokens, temperature)
        file = AnswerFile(output, len(rows), facts, force=force, inputs=(prompts,))
        reporter.start(target)
        from safesteer.models.generate import Decoding
        from safesteer.runs.artifacts import load_variants

        (variant,) = load_variants(found, [name], reporter, conversations=asked, now=file.date)
        decoding = Decoding(max_new_tokens, temperature)
        resumed = file.start(variant.identity, variant.model.chat.date)
        missing = file.missing
        if resumed:
            reporter.note(f"resuming: {len(rows) - len(missing)} of {len(rows)} answers are there")
        for answers in variant.generate_batches(
            [asked[number] for number in missing],
            decoding,
            batch_size=found.settings.evaluate.advanced.batch_size,
            seed=None if resumed else found.settings.seed,
        ):
            file.add({missing[i]: _row(rows[missing[i]], each) for i, each in answers.items()})
            reporter.progress("answers", len(rows) - len(file.missing), len(rows))
        file.finish()
        reporter.finish()
        line = f"wrote {len(rows)} answer{'s' * (len(rows) != 1)} to {output}"
        reporter.console.print(line, soft_wrap=True)


def _facts(
    target: Target, rows: list[Prompt], variant: str, max_new_tokens: int, temperature: float
) -> dict[str, Any]:
    """What decides the answers, besides the model's weights."""
    from safesteer.runs.manifest import canonical_hash

    model, teacher = target.settings.model, target.settings.teacher
    return {
        "prompts": canonical_hash([row.messages for row in rows]),
        "variant": variant if target.is_run else "model",
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": target.settings.seed,
        "model settings": model.model_dump(mode="json"),
        "teacher settings": teacher.model_dump(mode="json") if variant == "teacher" else None,
    }


def _row(prompt: Prompt, answer: Response) -> dict[str, Any]:
    """A row of the file."""
    if answer.skipped:
        return {"prompt": prompt.text, "completion": None, "skipped": "too long for the model"}
    row: dict[str, Any] = {"prompt": prompt.text, "completion": answer.answer}
    if answer.thinking or not answer.finished:
        row["thinking"] = answer.thinking
    return row
