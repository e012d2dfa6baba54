"""``safesteer benchmarks``: the list of benchmarks, or one of them in full."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safesteer.errors import InputError


def benchmarks(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Show this benchmark in full.")
    ] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir", metavar="DIR", help="Show which benchmark files this folder holds."
        ),
    ] = None,
) -> None:
    """List the benchmarks, or show one in full with its citation.

    NAME+FORM puts the requests of a benchmark into a form, for example harmful+second-turn.
    """
    from safesteer.cli.listings import benchmark_facts, benchmark_table
    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import facts
    from safesteer.evaluate.benchmarks import BENCHMARKS, find_benchmark

    if data_dir is not None and not data_dir.is_dir():
        raise InputError(
            f"--data-dir {data_dir}: no such folder. Try: the folder with the benchmark files"
        )
    with make_reporter(quiet=False) as reporter:
        if name:
            reporter.console.print(facts(name, benchmark_facts(find_benchmark(name), data_dir)))
        else:
            reporter.console.print(benchmark_table(BENCHMARKS, data_dir))
