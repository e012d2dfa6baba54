"""``safesteer verify``: whether a server serves a run's aligned model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from safesteer.cli.options import Quiet

if TYPE_CHECKING:
    from rich.console import Console

    from safesteer.pipeline.verify import Verification


def verify(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="Address of an OpenAI-compatible server, such as http://localhost:8000.",
        ),
    ],
    run: Annotated[str, typer.Option("--run", metavar="RUN", help="Folder of the run.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Ask this model of the server; an adapter has a name of its own.",
            show_default="the only one",
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            "--requests", metavar="N", min=2, help="Ask so many prompts.", show_default="all"
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Wait so long for a reply."),
    ] = 120.0,
    quiet: Quiet = False,
) -> None:
    """Check that a server (vLLM, llama.cpp, Ollama, ...) serves the run's aligned model.

    The run's test prompts are sent to the server, harmful ones too, and the answers compared with
    those that the run stored. Exits with 1 if it is the base, another model, or refuses less than
    the aligned model. A key is read from the environment variable OPENAI_API_KEY.
    """
    from safesteer.cli.reporter import make_reporter
    from safesteer.errors import SafeSteerError
    from safesteer.pipeline import verify as verifying

    with make_reporter(quiet) as reporter:
        reporter.start(f"verify {url}")
        found = verifying.verify(
            url, run, model=model, requests=requests, timeout=timeout, reporter=reporter
        )
        reporter.finish()
        _show(found, reporter.console)
    if found.problem:
        raise SafeSteerError(found.problem)


def _show(found: Verification, console: Console) -> None:
    """Print the figures of served, aligned and base model, and no answer."""
    from rich.text import Text

    from safesteer.cli.tables import table
    from safesteer.evaluate.served import BEGINNING, SETS
    from safesteer.report.words import figure

    comparison = found.comparison
    shown = table("refused", "served", "aligned, in the run", "base, in the run")
    for name in SETS:
        cells = [figure(comparison.entry(name, model)) for model in ("served", "aligned", "base")]
        shown.add_row(Text(f"{name} requests"), *map(Text, cells))
    console.print(shown)
    aligned, base = comparison.nearer
    lines = [
        f"{comparison.alike('aligned')} of {len(comparison.answers)} answers begin as the aligned"
        f" model's (first {BEGINNING} words), {comparison.alike('base')} as the base's",
        f"where the two differ, {aligned} answers are nearer to the aligned model's, {base} to the"
        " base's",
    ]
    if not found.problem:
        lines.append(f"{found.url} serves the aligned model of {found.run.path}: '{found.model}'")
    for line in lines:
        console.print(Text(line), soft_wrap=True)
