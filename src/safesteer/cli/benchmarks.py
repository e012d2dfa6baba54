"""``safesteer benchmarks``: what there is to measure a model by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safesteer.cli.options import Debug
from safesteer.errors import InputError


def benchmarks(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Benchmark to show in full.")] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="Say which files are found below DIR."),
    ] = None,
    debug: Debug = False,
) -> None:
    """List the benchmarks, or show one in full, with its citation.

    NAME+FORM is a benchmark whose requests are put in a form, such as harmful+second-turn.
    """
    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import benchmark_facts, benchmark_table, facts
    from safesteer.evaluate.benchmarks import BENCHMARKS, find_benchmark

    if data_dir is not None and not data_dir.is_dir():
        raise InputError(f"--data-dir: there is no folder {data_dir}")
    with make_reporter(quiet=False) as reporter:
        if name:
            reporter.console.print(facts(name, benchmark_facts(find_benchmark(name), data_dir)))
        else:
            reporter.console.print(benchmark_table(BENCHMARKS, data_dir))
