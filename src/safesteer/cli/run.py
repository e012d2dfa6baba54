"""``safesteer run``: the whole job."""

from __future__ import annotations

from typing import Annotated

import typer

from safesteer.cli.options import Debug, Fresh, GivenSettings, OutputDir, Quiet, with_settings
from safesteer.errors import InputError


@with_settings
def run(
    settings: GivenSettings,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Hub id, folder, .gguf file, or a run to go on with.",
            show_default="smollm2-135m, built in",
        ),
    ] = None,
    output_dir: OutputDir = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="USER/NAME",
            help="Send the finished run to the Hugging Face hub: weights, model card, direction,"
            " tokens, results.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read what is pushed.")
    ] = False,
    transcripts: Annotated[
        bool,
        typer.Option("--transcripts", help="Push every prompt and answer, and report.html, too."),
    ] = False,
    resume: Fresh = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a model safe: direction, safety tokens, distillation, evaluation, report."""
    from safesteer.cli.work import work
    from safesteer.export.hub import HubTarget

    if push_to_hub is None and (public or transcripts):
        raise InputError("--public and --transcripts are about --push-to-hub, which is not given")
    hub = None if push_to_hub is None else HubTarget(push_to_hub, public, transcripts)
    work(model, settings, output_dir, last="report", fresh=not resume, quiet=quiet, hub=hub)
