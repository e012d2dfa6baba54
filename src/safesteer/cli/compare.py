"""``safesteer compare``: a table of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safesteer.cli.gate import Gate, with_change_gate
from safesteer.cli.options import Force, Quiet


@with_change_gate
def compare(
    gate: Gate,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [RUN ...]",
            help="Folders of evaluated runs, or files that `safesteer eval --json` wrote.",
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the table and its charts to this page."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the comparison to this file."),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Compare runs in one table: safety, over-refusal, capability, drift and cost.

    Intervals are 95%. Every run is tested against the first one where both answered the same
    prompts. --require 'harmful>=-2' exits with 1 unless the others refuse at most two points fewer
    harmful prompts than the first one.
    """
    from rich.text import Text

    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import table
    from safesteer.files import check_outputs, write_json, write_text
    from safesteer.report import compare as comparing
    from safesteer.report.requirements import check_changes, raise_failed

    outputs = {"--html": html, "--json": json_file, "--junit": gate.junit}
    check_outputs(outputs, force=force, inputs=runs)
    entrants = comparing.read_entrants(runs)
    outcomes = check_changes(gate.required, entrants, point=gate.point) if gate.required else []
    found = comparing.compare(entrants)
    if json_file is not None:
        write_json(json_file, found)
    if html is not None:
        write_text(html, comparing.render_comparison(found))
    with make_reporter(quiet) as reporter:
        rows, notes = comparing.table_rows(found)
        shown = table("", *(run["name"] for run in found["runs"]))
        for row in rows:
            shown.add_row(*map(Text, row))
        reporter.console.print(shown)
        lines = [*notes, *comparing.paired_words(found)]
        if found["axes"]:
            lines.append("Pareto front over " + "; ".join(comparing.axis_words(found)))
        for line in lines:
            reporter.console.print(Text(line), soft_wrap=True)
        gate.report(f"compare {' '.join(runs)}", outcomes, reporter.console)
    raise_failed(outcomes)
