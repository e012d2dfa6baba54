"""``safesteer tokens``: the first two stages."""

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
def tokens(
    settings: GivenSettings,
    target: RunOrModel,
    output_dir: OutputDir = None,
    resume: Fresh = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Choose the safety tokens, after the direction if it is missing."""
    from safesteer.cli.work import work

    work(target, settings, output_dir, last="tokens", fresh=not resume, quiet=quiet)
