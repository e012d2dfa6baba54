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
    debug: Debug = False,
) -> None:
    """Show versions, device, memory; for a model its layers, template and a steering self-test."""
    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import facts
    from safesteer.targets import find_target

    found = find_target(model, **settings.arguments()) if model else None
    with make_reporter(quiet=False) as reporter:
        from safesteer.doctor import machine_facts, model_facts

        reporter.console.print(facts("this machine", machine_facts()))
        if found is not None and model is not None:
            from safesteer.models.load import load_model

            loaded = load_model(found.settings.model)
            reporter.console.print(facts(model, model_facts(loaded)))
