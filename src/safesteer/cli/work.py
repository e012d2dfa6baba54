"""What `run` and the single stages share: open the run, do its stages, report."""

from __future__ import annotations

import time
from pathlib import Path

from safesteer import distributed
from safesteer.cli.options import GivenSettings
from safesteer.cli.reporter import make_reporter
from safesteer.cli.tables import print_summary
from safesteer.distill.trackers import check_trackers
from safesteer.export.hub import HubTarget, check_hub, push
from safesteer.prompts import load_prompt_sets
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
    """Do the stages up to `last` for RUN_OR_MODEL, print what they found, and push it if asked."""
    started = time.monotonic()
    found = find_target(target, **settings.arguments(), output_dir=output_dir)
    # Wrong prompt files are found here, in a moment, and not after torch is loaded.
    load_prompt_sets(found.settings.prompts, found.settings.seed)
    check_trackers(found.settings.report_to)
    if not distributed.is_main():
        hub = None  # the main process sends
    if hub is not None:
        check_hub(hub)
    with make_reporter(quiet) as reporter:
        reporter.start(found.settings.model.id, str(found.path))

        from safesteer.evaluate.stored import read_results
        from safesteer.pipeline.stages import Pipeline
        from safesteer.runs.open import open_run

        with open_run(found.path, found.settings, fresh=fresh) as run:
            Pipeline(run, reporter).run_all(last)
        reporter.finish()
        if not quiet and distributed.is_main():
            print_summary(
                reporter.console, run, read_results(run.path), last, time.monotonic() - started
            )
        if hub is not None:
            from rich.text import Text

            reporter.stage("push", f"sending the run to {hub.repo}")
            pushed = push(run, hub)
            reporter.finish()
            who = "public" if pushed.public else "private"
            what = "transcripts included" if hub.transcripts else "no transcripts among them"
            line = f"pushed: {pushed.url} ({who}; {len(pushed.files)} files, {what})"
            if pushed.removed:
                count = len(pushed.removed)
                line += f"; removed {count} of an earlier push, which older commits still hold"
            reporter.console.print(Text(line), soft_wrap=True)
