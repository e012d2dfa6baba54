"""Align a model: the whole job as one function, for Python and for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safesteer import distributed
from safesteer.events import Reporter
from safesteer.export.hub import HubTarget, check_hub, push
from safesteer.models.files import require_model
from safesteer.prompts import load_prompt_sets
from safesteer.runs.directory import RunDirectory
from safesteer.runs.stage import STAGES
from safesteer.runs.target import Target, find_target
from safesteer.runs.worse import check_not_worse


def align(
    model: str = "smollm2-135m",
    output_dir: str | Path | None = None,
    /,
    *,
    config: str | Path | None = None,
    fresh: bool = False,
    reporter: Reporter | None = None,
    push_to_hub: HubTarget | None = None,
    allow_worse: bool = False,
    **sections: Any,
) -> RunDirectory:
    """Do what ``safesteer run MODEL`` does, and print nothing.

    Example::

        run = safesteer.align("smollm2-135m", "my-run", train={"max_steps": 40})

    Args:
        model: a hub id, folder, .gguf file or built-in name; or the folder of a run, to resume it.
        output_dir: the folder of the run; safesteer-runs/NAME OF THE MODEL if None.
        config: a recipe's name or a YAML file; None takes the recipe that names the model, or
            `default`.
        fresh: first delete what an earlier run has written to the folder.
        reporter: receives progress.
        push_to_hub: where to send the finished run.
        allow_worse: accept, and push, a model that is worse than its base (docs/gates.md).
        sections: settings as dictionaries, one per section; `model` too.

    Returns:
        The finished run directory, closed.

    Raises:
        InputError: an input is wrong; raised before a model is loaded.
        WorseThanBase: the run is complete, and its aligned model worse than its base.
        SafeSteerError: the work failed.
    """
    target = find_target(model, config=config, sections=sections, output_dir=output_dir)
    return run_stages(
        target, fresh=fresh, reporter=reporter, hub=push_to_hub, allow_worse=allow_worse
    )


def run_stages(
    target: Target,
    *,
    stages: Sequence[str] = STAGES,
    fresh: bool = False,
    reporter: Reporter | None = None,
    hub: HubTarget | None = None,
    allow_worse: bool = False,
) -> RunDirectory:
    """Run those of `stages` that are not done yet, then push the run if `hub` says where.

    A whole run whose aligned model is worse than its base ends in WorseThanBase, with everything
    written and nothing pushed, unless `allow_worse`.

    The one front door: every command and `align` come here, and `preflight` checks their input.
    """
    settings = target.settings
    reporter = reporter if reporter and distributed.is_main() else Reporter()
    # Wrong files are reported at once: torch, which the rest imports, takes seconds to load.
    prompts = load_prompt_sets(settings.prompts, settings.seed)
    hub = hub if distributed.is_main() else None  # the main process sends
    if hub is not None:
        check_hub(hub)
    if distributed.is_main():
        require_model(settings.model)
    reporter.start(settings.model.id, str(target.path))

    from safesteer.pipeline.preflight import open_pipeline

    with open_pipeline(target, prompts, stages=stages, fresh=fresh, reporter=reporter) as pipeline:
        pipeline.run_all(stages)
    if tuple(stages) == STAGES and distributed.is_main():
        check_not_worse(pipeline.run, allow_worse=allow_worse)
    if hub is not None:
        reporter.stage("push", f"sending the run to {hub.repo}")
        pushed = push(pipeline.run, hub)
        reporter.result("push", {**vars(pushed), "transcripts": hub.transcripts})
    return pipeline.run
