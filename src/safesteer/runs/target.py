"""What RUN_OR_MODEL means: an existing run with its settings, or a model with a recipe's.

Imports nothing heavy, so that wrong settings are found before torch is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safesteer.config.load import load_settings, recipe_for_model
from safesteer.config.settings import ModelSettings, Settings
from safesteer.errors import InputError
from safesteer.models.files import short_name
from safesteer.runs.directory import RunDirectory

RUNS_FOLDER = "safesteer-runs"


@dataclass(frozen=True)
class Target:
    """Settings, and the folder of the run that they belong to.

    Attributes:
        settings: everything resolved.
        path: the run's folder, existing or to be made.
        is_run: whether the user named a run, and not a model.
    """

    settings: Settings
    path: Path
    is_run: bool


def find_target(
    name: str | None,
    *,
    config: str | Path | None = None,
    overrides: list[str] | None = None,
    sections: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
) -> Target:
    """Resolve RUN_OR_MODEL; None is the model that `config` names, or the built-in one.

    A run keeps its own settings except for `sections` and `overrides`. A model gets `config`, or
    the recipe that names it, or the defaults.

    Raises InputError for settings that are wrong, and for a run together with `config` or
    `output_dir`, which it has already.
    """
    sections = sections or {}
    if name is None:
        name = load_settings(config).model.id
    if RunDirectory.is_run(name):
        path = Path(name)
        if output_dir is not None and Path(output_dir).resolve() != path.resolve():
            raise InputError(f"{name} is a run; leave out --output-dir, or name its model instead")
        if config is not None:
            raise InputError(f"{name} is a run and has its settings; change them with --set")
        settings = load_settings(path / "config.yaml", overrides, **sections)
        return Target(settings, path, True)
    recipe = recipe_for_model(name) if config is None else config
    model = os.path.abspath(os.path.expanduser(name)) if _is_local(name) else name
    sections = {**sections, "model": {**sections.get("model", {}), "id": model}}
    settings = load_settings(recipe, overrides, **sections)
    return Target(
        settings, Path(output_dir or Path(RUNS_FOLDER) / (short_name(model) or "model")), False
    )


def _is_local(name: str) -> bool:
    builtin = ModelSettings.model_fields["id"].default
    return name != builtin and os.path.exists(os.path.expanduser(name))
