"""``safesteer doctor``: facts about this machine, and the needs of a model on it."""

from __future__ import annotations

from typing import Annotated

import typer

from safesteer.cli.options import GivenSettings, with_model_settings


@with_model_settings
def doctor(
    settings: GivenSettings,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Check this model as well: a hub id, a folder, a .gguf file or smollm2-135m.",
        ),
    ] = None,
    config_only: Annotated[
        bool,
        typer.Option(
            "--config-only", help="Read only the model's config.json; download and load no weights."
        ),
    ] = False,
) -> None:
    """Check this machine: versions, device, memory and disk; and what a model needs on it.

    For a model: its layers, its chat template, a test that steering works, the predicted peak
    memory of every stage, and the GPUs on which it can be trained.
    """
    from rich.text import Text

    from safesteer.cli.listings import gpu_table, memory_table
    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import facts
    from safesteer.runs.target import find_target

    found = find_target(model, **settings.arguments()) if model is not None else None
    with make_reporter(quiet=False) as reporter:
        from safesteer.pipeline.doctor import machine_facts, memory_needed, model_facts

        reporter.console.print(facts("this machine", machine_facts()))
        if found is not None and model is not None:
            from safesteer.runs.artifacts import load_variants

            loaded = None if config_only else load_variants(found, ["base"])[0].model
            if loaded is not None:
                reporter.console.print(facts(model, model_facts(loaded)))
            needed = memory_needed(found.settings, loaded)
            reporter.console.print(memory_table(needed))
            reporter.console.print(gpu_table(needed.fits))
            if needed.advice:
                reporter.console.print(
                    Text(f"Does not fit into memory here. Try: {needed.advice}"), soft_wrap=True
                )
