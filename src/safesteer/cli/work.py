"""Run stages for a command: `run`, the single stages, and `report` of a model."""

from __future__ import annotations

import time
from pathlib import Path

from safesteer import distributed
from safesteer.cli.options import GivenSettings
from safesteer.cli.reporter import make_reporter
from safesteer.cli.tables import print_summary
from safesteer.export.hub import HubTarget
from safesteer.pipeline.align import run_stages
from safesteer.runs.stage import stages_to
from safesteer.runs.target import find_target


def work(
    target: str | None,
    settings: GivenSettings,
    output_dir: Path | None,
    *,
    last: str,
    fresh: bool,
    quiet: bool,
    hub: HubTarget | None = None,
) -> None:
    """Run the stages up to `last` for RUN_OR_MODEL, push the run if asked, print a summary."""
    started = time.monotonic()
    found = find_target(target, **settings.arguments(), output_dir=output_dir)
    with make_reporter(quiet) as reporter:
        run = run_stages(found, stages=stages_to(last), fresh=fresh, reporter=reporter, hub=hub)
        reporter.finish()
        if not quiet and distributed.is_main():
            from safesteer.evaluate.stored import read_results

            seconds = time.monotonic() - started
            print_summary(reporter.console, run, read_results(run.path), last, seconds)
