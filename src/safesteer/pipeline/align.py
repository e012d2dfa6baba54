"""The whole job from Python, as the command does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safesteer.events import Reporter
from safesteer.pipeline.stages import Pipeline
from safesteer.runs.directory import RunDirectory
from safesteer.runs.open import open_run
from safesteer.runs.target import find_target


def align(
    model: str = "smollm2-135m",
    output_dir: str | Path = "safesteer-run",
    *,
    config: str | Path | None = None,
    fresh: bool = False,
    reporter: Reporter | None = None,
    **sections: Any,
) -> RunDirectory:
    """The whole job from Python: what ``safesteer run MODEL`` does.

    `config` is a recipe's name or a YAML file; without one, the recipe that names the model, or
    the recipe `default`. `sections` are settings as dictionaries, for
    example ``train={"updates": 10}``. Returns the finished run directory, closed.

    Raises InputError for wrong input and SafeSteerError when the work fails.
    """
    settings = find_target(model, config=config, sections=sections, output_dir=output_dir).settings
    with open_run(output_dir, settings, fresh=fresh) as run:
        Pipeline(run, reporter).run_all()
    return run
