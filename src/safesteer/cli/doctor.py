"""``safesteer doctor``: what this machine has, and what a model would need."""

from __future__ import annotations

from typing import Annotated

import typer

from safesteer.cli.options import Debug, GivenSettings, with_model_settings


@with_model_settings
def doctor(
    settings: GivenSettings,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Model to look at as well.")
    ] = None,
    config_only: Annotated[
        bool,
        typer.Option(
            "--config-only",
            help="Read the model's config.json alone: no weights are fetched or loaded.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Show versions, device, memory; for a model its layers, template and a steering self-test.

    Also predicts the peak of memory of every stage, and which card fits which way to train.
    """
    from rich.text import Text

    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import card_table, facts, memory_table
    from safesteer.runs.target import find_target

    found = find_target(model, **settings.arguments()) if model else None
    with make_reporter(quiet=False) as reporter:
        from safesteer.pipeline.doctor import machine_facts, memory_needed, model_facts

        reporter.console.print(facts("this machine", machine_facts()))
        if found is not None and model is not None:
            from safesteer.models.load import load_model

            loaded = None if config_only else load_model(found.settings.model)
            if loaded is not None:
                reporter.console.print(facts(model, model_facts(loaded)))
            needed = memory_needed(found.settings, loaded)
            reporter.console.print(memory_table(needed))
            reporter.console.print(card_table(needed.fits))
            if needed.advice:
                reporter.console.print(
                    Text(f"does not fit here; would: {needed.advice}"), soft_wrap=True
                )
