"""``safesteer direction``, ``tokens`` and ``train``; and the work of every command with stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer import distributed
from safesteer.cli.options import Fresh, GivenSettings, OutputDir, Quiet, RunOrModel, with_settings

if TYPE_CHECKING:
    from safesteer.export.hub import HubTarget


def work(
    target: str | None,
    settings: GivenSettings,
    output_dir: Path | None,
    *,
    last: str,
    fresh: bool,
    quiet: bool,
    hub: HubTarget | None = None,
    allow_worse: bool = False,
) -> None:
    """Run the stages up to `last` for RUN_OR_MODEL, push the run if asked, print a summary."""
    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import print_summary
    from safesteer.pipeline.align import run_stages
    from safesteer.runs.directory import RunDirectory
    from safesteer.runs.stage import stages_to
    from safesteer.runs.target import find_target
    from safesteer.runs.worse import WorseThanBase

    started = time.monotonic()
    found = find_target(target, **settings.arguments(), output_dir=output_dir)
    with make_reporter(quiet) as reporter:
        stages, problem = stages_to(last), None
        try:
            run = run_stages(
                found,
                stages=stages,
                fresh=fresh,
                reporter=reporter,
                hub=hub,
                allow_worse=allow_worse,
            )
        except WorseThanBase as error:  # the run is complete, and its summary shows the figures
            run, problem = RunDirectory.load(found.path), error
        reporter.finish()
        if not quiet and distributed.is_main():
            from safesteer.evaluate.stored import read_results

            seconds = time.monotonic() - started
            print_summary(reporter.console, run, read_results(run.path), last, seconds)
    if problem is not None:
        raise problem


def _up_to(last: str, help_: str) -> Callable[..., None]:
    """The command that runs the stages up to `last`."""

    @with_settings
    def command(
        settings: GivenSettings,
        target: RunOrModel,
        output_dir: OutputDir = None,
        resume: Fresh = True,
        quiet: Quiet = False,
    ) -> None:
        work(target, settings, output_dir, last=last, fresh=not resume, quiet=quiet)

    command.__doc__ = help_
    return command


direction = _up_to("direction", "Find the refusal direction: the first stage of a run.")
tokens = _up_to("tokens", "Choose the safety tokens, after the direction if it is missing.")
train = _up_to("train", "Train the aligned model, after the stages that are missing.")
