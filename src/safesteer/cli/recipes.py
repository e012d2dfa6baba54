"""``safesteer recipes``: the recipes that come with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from safesteer.cli.options import Debug
from safesteer.config.load import accelerate_names, recipe_model, recipe_names, recipe_text
from safesteer.errors import InputError, nearest


def recipes(
    action: Annotated[str, typer.Argument(metavar="[list|show]", help="What to do.")] = "list",
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Recipe to show.")] = "",
    debug: Debug = False,
) -> None:
    """List the recipes, or show one as YAML."""
    if action == "list":
        for recipe in recipe_names():
            print(f"{recipe:<28} {recipe_model(recipe) or 'any model'}")
        for launch in accelerate_names():
            print(f"{launch:<28} for accelerate launch --config_file (docs/devices.md)")
    elif action == "show" and name:
        print(recipe_text(name), end="")
    elif action == "show":
        raise InputError("recipes show: name a recipe; `safesteer recipes list` shows all")
    else:
        raise InputError(f"recipes {action}: no such action{nearest(action, ['list', 'show'])}")
