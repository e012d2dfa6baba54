"""``safesteer train``: all stages but the evaluation."""

from __future__ import annotations

from safesteer.cli.options import (
    Debug,
    Fresh,
    GivenSettings,
    OutputDir,
    Quiet,
    RunOrModel,
    with_settings,
)


@with_settings
def train(
    settings: GivenSettings,
    target: RunOrModel,
    output_dir: OutputDir = None,
    resume: Fresh = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Distil the teacher on the safety tokens, after the stages that are missing."""
    from safesteer.cli.work import work

    work(target, settings, output_dir, last="train", fresh=not resume, quiet=quiet)
