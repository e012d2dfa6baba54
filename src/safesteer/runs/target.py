"""Resolve RUN_OR_MODEL: an existing run with its settings, or a model with a recipe.

Nothing here imports torch, so that wrong settings are reported at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safesteer.config.load import load_settings, recipe_for_model
from safesteer.config.settings import ModelSettings, Settings
from safesteer.errors import InputError
from safesteer.models.files import require_model, short_name
from safesteer.runs.directory import RunDirectory

RUNS_FOLDER = "safesteer-runs"


@dataclass(frozen=True)
class Target:
    """Settings, and the folder of the run they belong to."""

    settings: Settings
    path: Path  # existing or new
    is_run: bool  # whether the user named a run, and not a model

    def check_model(self) -> None:
        """Raise InputError if the user named a model that does not exist."""
        if not self.is_run:
            require_model(self.settings.model)


def find_target(
    name: str | None,
    *,
    config: str | Path | None = None,
    overrides: list[str] | None = None,
    sections: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
) -> Target:
    """Resolve RUN_OR_MODEL; None is the model that `config` names, or the built-in one.

    Without `config` a model gets the recipe that names it, or `default`; a run keeps its own
    settings. `sections` and `overrides` change either, as in `load_settings`.
    """
    sections = sections or {}
    if name is None:
        name = load_settings(config).model.id
    if not name.strip():  # not the current folder, which may be a run
        raise InputError("the name of the run or model is empty. Try: a folder, or a hub id")
    if RunDirectory.is_run(name):
        path = Path(name)
        if output_dir is not None and Path(output_dir).resolve() != path.resolve():
            raise InputError(
                f"{name} is a run and its own folder. Try: without --output-dir, or name its model"
            )
        if config is not None:
            raise InputError(f"{name} is a run and has its settings. Try: --set section.key=value")
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
