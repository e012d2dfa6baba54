"""``safesteer direction``: the first stage alone."""

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
def direction(
    settings: GivenSettings,
    target: RunOrModel,
    output_dir: OutputDir = None,
    resume: Fresh = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the refusal direction (and stop there)."""
    from safesteer.cli.work import work

    work(target, settings, output_dir, last="direction", fresh=not resume, quiet=quiet)
