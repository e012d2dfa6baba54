"""``safesteer recipes``: the list of recipes, or one of them as YAML."""

from __future__ import annotations

import re
import textwrap
from typing import Annotated

import typer

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
    action: Annotated[
        str, typer.Argument(metavar="[list|show]", help="List all recipes, or show one.")
    ] = "list",
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Show this recipe.")] = "",
    all_: Annotated[
        bool,
        typer.Option("--all", help="Show every key with its description, advanced ones included."),
    ] = False,
) -> None:
    """List the recipes and what each is for, or show one as YAML.

    A recipe is a file of settings. Save what `show` prints, change it, and use it as --config FILE.
    """
    if action == "list":
        _list()
    elif action == "show" and name:
        print(_shown(name, all_), end="")
    elif action == "show":
        raise InputError("recipes show: no recipe is named. Try: `safesteer recipes list`")
    else:
        raise InputError(
            f"recipes {action}: no such action{nearest(action, ['list', 'show'])}. Try: list, or"
            " show NAME"
        )


def _list() -> None:
    """Print the names and what each recipe or launch file is for."""
    from rich.text import Text

    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import table

    with make_reporter(quiet=False) as reporter:
        settings = table("recipe", "model", "for")
        for name in recipe_names():
            settings.add_row(name, recipe_model(name) or "any model", Text(_purpose(name)))
        launches = table("for `accelerate launch`, see docs/devices.md", "")
        for name in accelerate_names():
            launches.add_row(name, Text(_purpose(name)))
        for shown in (settings, launches):
            for column in shown.columns:
                column.justify, column.overflow = "left", "fold"
            shown.columns[0].no_wrap = True
            reporter.console.print(shown)


def _purpose(name: str) -> str:
    """The first sentence of the comment at the top of a recipe, without what is in brackets."""
    comment = re.match(r"(#.*\n)+", recipe_text(name))
    text = " ".join(line.strip("# ") for line in comment[0].splitlines()) if comment else ""
    return re.split(r"(?<=\.)\s", re.sub(r" \([^)]*\)", "", text), maxsplit=1)[0]


def _shown(name: str, everything: bool) -> str:
    """A recipe as YAML that can be saved and used, below the text that it extends as comment."""
    text = recipe_text(name)
    if name not in recipe_names():
        return text
    if everything:
        return f"# {name}, every key\n" + describe_settings(load_settings(name))
    while base := recipe_base(name):
        below = textwrap.indent(recipe_text(base), "#   ")
        text, name = f"# {name} extends {base}, which says:\n{below}\n{text}", base
    return text
