"""``safesteer export``: the aligned model or the teacher in the format of another tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safesteer.cli.options import AllowWorse, Quiet
from safesteer.errors import InputError, SafeSteerError, printable
from safesteer.export.output import DTYPES, NAMES, check_export, check_name
from safesteer.export.quantize import TYPES, read_types

if TYPE_CHECKING:
    from rich.console import Console

    from safesteer.export.formats import Export
    from safesteer.pipeline.quantize import Measured
    from safesteer.runs.directory import RunDirectory

Quantize = Annotated[
    str,
    typer.Option(
        "--quantize",
        metavar="TYPE,...",
        help=f"For gguf: also write the file in these types ({', '.join(TYPES)}), and ask each"
        " the run's test prompts in llama.cpp.",
        show_default=False,
    ),
]
AllowLoss = Annotated[
    bool,
    typer.Option(
        "--allow-loss",
        help="Keep quantized files that behave differently from the aligned model.",
    ),
]


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(NAMES),
            help="adapter: PEFT adapter. merged: full weights. gguf: GGUF file."
            " lora-gguf: the adapter for llama.cpp and Ollama, on a base of your own. teacher: the"
            " safety teacher as a model of its own. steered, control-vector: the teacher's"
            " direction for lm-eval or llama.cpp. commands: command lines for vLLM, Ollama and"
            " lm-eval.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR|FILE",
            help="Write this folder; this file for gguf, lora-gguf and control-vector. Without it,"
            " commands are printed.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="|".join(DTYPES),
            help="Write the weights of merged, gguf and teacher in this type.",
            show_default="that of the base; float16 for a GGUF base",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier export at the same path.")
    ] = False,
    types: Quantize = "",
    allow_loss: AllowLoss = False,
    allow_worse: AllowWorse = False,
    quiet: Quiet = False,
) -> None:
    """Export the aligned model or the teacher for another tool.

    Every export is read back with that tool, and kept only if its next-token log-probabilities
    agree with the run's.
    """
    from safesteer.cli.reporter import make_reporter
    from safesteer.runs.directory import RunDirectory

    check_name(form, dtype)
    if allow_loss and not types:
        raise InputError("--allow-loss is for --quantize. Try: --quantize Q8_0, or without it")
    if types and form != "gguf":
        raise InputError(f"--quantize does not apply to --format {form}. Try: --format gguf")
    found = RunDirectory.load(run)
    if form == "commands":
        _write_commands(found, output, force=force, allow_worse=allow_worse)
        return
    if output is None:
        raise InputError(f"--output is missing for {form}. Try: --output PATH")
    check_export(output, form, force)
    wanted = _check_quantize(found, output, types, force=force)
    how: dict[str, Any] = {"dtype": dtype, "force": force, "allow_worse": allow_worse}
    with make_reporter(quiet) as reporter:
        reporter.start(run, str(output))
        from safesteer.export.formats import export as write

        made = write(run, form, output, **how, reporter=reporter)
        reporter.finish()
        _show(made, output, reporter.console)
        if wanted:
            from safesteer.pipeline import quantize

            rows = quantize.export_quantized(
                found, output, made.dtype, wanted, allow_loss=allow_loss, reporter=reporter
            )
            reporter.finish()
            _show_quantized(rows, reporter.console)
            if (lost := quantize.loss_line(rows)) and not allow_loss:
                raise SafeSteerError(lost)


def _check_quantize(run: RunDirectory, output: Path, types: str, *, force: bool) -> list[str]:
    """The types of --quantize, after its checks."""
    wanted = read_types(types)
    if not wanted:
        return []
    from safesteer.pipeline.quantize import check_quantize

    check_quantize(run, output, wanted, force=force)
    return wanted


def _write_commands(
    run: RunDirectory, output: Path | None, *, force: bool, allow_worse: bool
) -> None:
    from safesteer.export.commands import commands
    from safesteer.files import check_output, write_text
    from safesteer.runs.worse import check_not_worse

    check_not_worse(run, allow_worse=allow_worse)
    lines = commands(run.path, run.settings, run.manifest["model"])
    if output is None:
        print(printable(lines), end="")
    else:
        check_output(output, "--output", force=force)
        write_text(output, lines)


def _show(made: Export, output: Path, console: Console) -> None:
    """Print which tools read the export, and how well it agrees with the run."""
    from rich.text import Text

    from safesteer.export.llama_cpp import INSTALL, is_installed

    line = (
        f"wrote {made.format} to {output} ({made.dtype}). Read back with"
        f" {' and '.join(made.read_by)}: next-token log-probabilities of {made.prompts} prompts"
        f" differ by at most {made.difference:.2g} (limit {made.bound:g})"
    )
    if made.format in ("gguf", "lora-gguf") and not is_installed():
        line += f". llama.cpp itself was not run. Try: {INSTALL}"
    console.print(Text(line), soft_wrap=True)


def _show_quantized(rows: Sequence[Measured], console: Console) -> None:
    """Print a row for each file."""
    from safesteer.cli.tables import table
    from safesteer.report.words import figure, percent, size

    shown = table("format", "size", "harmful refused", "harmless refused", "agreement", "file")
    for row in rows:
        agreement = f"{percent(row.alike / row.answers)} ({row.answers})"
        weight = size(row.bytes) if row.bytes else ""
        figures = (weight, figure(row.harmful), figure(row.harmless), agreement)
        shown.add_row(
            row.format, *figures, "" if not row.bytes else "kept" if row.kept else "deleted"
        )
    console.print(shown)
