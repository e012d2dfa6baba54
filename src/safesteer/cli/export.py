"""``safesteer export``: what a run made, for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safesteer.cli.options import Debug, Quiet
from safesteer.errors import InputError
from safesteer.export.output import DTYPES, NAMES, check_name, check_output


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(NAMES),
            help="PEFT adapter; full weights; GGUF file; the teacher as a model of its own, or as"
            " lm-eval's `steered` file; command lines for vLLM, Ollama and lm-eval.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR|FILE",
            help="Folder to make; a .gguf file for gguf. Commands are printed without it.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="|".join(DTYPES),
            help="Type of the weights in merged, gguf and teacher.",
            show_default="the base's own; float16 for a GGUF base",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the aligned model or the teacher for other tools; kept only if read back the same."""
    from rich.text import Text

    from safesteer.cli.reporter import make_reporter
    from safesteer.files import write_text
    from safesteer.runs.directory import RunDirectory

    check_name(form, dtype)
    found = RunDirectory.load(run)
    if form == "commands":
        from safesteer.export.commands import commands

        lines = commands(found.path, found.settings, found.manifest["model"])
        if output is None:
            print(lines, end="")
        elif output.exists() and not force:
            raise InputError(f"{output} exists; choose another --output, or add --force")
        else:
            write_text(output, lines)
        return
    if output is None:
        raise InputError(f"--output is missing: say where the {form} shall go")
    check_output(output, form, force)
    with make_reporter(quiet) as reporter:
        reporter.start(run, str(output))
        from safesteer.export.proven import export as write

        made = write(run, form, output, dtype=dtype, force=force, reporter=reporter)
        reporter.finish()
        line = (
            f"{form} in {output} ({made.dtype}); read back with {' and '.join(made.read_by)}: the"
            f" largest difference of a next-token log-probability over {made.prompts} prompts is"
            f" {made.difference:.2g}, allowed {made.bound:g}"
        )
        reporter.console.print(Text(line), soft_wrap=True)
