"""``safesteer recipes``: the recipes that come with the package."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from safesteer.cli.options import Debug
from safesteer.config.load import (
    accelerate_names,
    describe_settings,
    load_settings,
    recipe_base,
    recipe_model,
    recipe_names,
    recipe_text,
)
from safesteer.errors import InputError, nearest


def recipes(
    action: Annotated[str, typer.Argument(metavar="[list|show]", help="What to do.")] = "list",
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Recipe to show.")] = "",
    all_: Annotated[
        bool, typer.Option("--all", help="Every key with its value, advanced ones included.")
    ] = False,
    debug: Debug = False,
) -> None:
    """List the recipes, or show one as YAML."""
    if action == "list":
        for recipe in recipe_names():
            print(f"{recipe:<28} {recipe_model(recipe) or 'any model'}")
        for launch in accelerate_names():
            print(f"{launch:<28} for accelerate launch --config_file (docs/devices.md)")
    elif action == "show" and name:
        print(_shown(name, all_), end="")
    elif action == "show":
        raise InputError("recipes show: no recipe is named. Try: `safesteer recipes list`")
    else:
        raise InputError(f"recipes {action}: no such action{nearest(action, ['list', 'show'])}")


def _shown(name: str, everything: bool) -> str:
    """A recipe as YAML that can be saved and used: what it extends stands in comments above it."""
    text = recipe_text(name)
    if name not in recipe_names():
        return text
    if everything:
        return f"# {name}, every key\n" + describe_settings(load_settings(name))
    while base := recipe_base(name):
        below = textwrap.indent(recipe_text(base), "#   ")
        text, name = f"# {name} extends {base}, which says:\n{below}\n{text}", base
    return text
