"""``safesteer run``: every stage, from a model to its aligned adapter and report."""

from __future__ import annotations

from typing import Annotated

import typer

from safesteer.cli.options import AllowWorse, Fresh, GivenSettings, OutputDir, Quiet, with_settings
from safesteer.cli.stages import work
from safesteer.errors import InputError


@with_settings
def run(
    settings: GivenSettings,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Hub id, folder or .gguf file of a model, or the folder of a run to resume.",
            show_default="smollm2-135m, the built-in model",
        ),
    ] = None,
    output_dir: OutputDir = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="USER/NAME",
            help="Push the finished run to this private repository of the Hugging Face hub:"
            " weights, model card, direction, tokens and results.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make the pushed repository public.")
    ] = False,
    transcripts: Annotated[
        bool,
        typer.Option("--transcripts", help="Also push report.html and every prompt and answer."),
    ] = False,
    allow_worse: AllowWorse = False,
    resume: Fresh = True,
    quiet: Quiet = False,
) -> None:
    """Make a model safe: get an adapter, its evaluation and a one-page report.

    The stages are direction, tokens, train, evaluate and report. The same command again resumes an
    interrupted run.
    """
    from safesteer.export.hub import HubTarget

    if push_to_hub is None and (public or transcripts):
        raise InputError(
            "--public and --transcripts need --push-to-hub. Try: --push-to-hub USER/NAME"
        )
    hub = None if push_to_hub is None else HubTarget(push_to_hub, public, transcripts)
    work(
        model,
        settings,
        output_dir,
        last="report",
        fresh=not resume,
        quiet=quiet,
        hub=hub,
        allow_worse=allow_worse,
    )
