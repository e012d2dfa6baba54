"""Gates: the options --require, --point and --junit, and the lines and the exit code they make."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from safesteer.cli.options import parameter, replace_parameter
from safesteer.errors import InputError

if TYPE_CHECKING:
    from safesteer.report.requirements import Outcome, Requirement


@dataclass(frozen=True)
class Gate:
    """The requirements of a command; none without --require."""

    required: Sequence[Requirement] = ()
    point: bool = False  # whether figures count without their intervals
    junit: Path | None = None

    def report(self, command: str, outcomes: Sequence[Outcome], console: Console) -> None:
        """Print a line per requirement, and write the JUnit file."""
        from safesteer.report.junit import write_junit

        for outcome in outcomes:
            console.print(Text(str(outcome)), soft_wrap=True)
        if self.junit is not None:
            write_junit(self.junit, f"safesteer {command}", outcomes)


def with_gate(command: Callable[..., None], *, changes: bool = False) -> Callable[..., None]:
    """Replace the parameter `gate` of a command by the options; bounds may be on `changes`."""

    def collect(require: str | None, point: bool, junit: Path | None) -> Gate:
        if require is None:
            if point or junit is not None:
                raise InputError("--point and --junit need --require. Try: --require NAME>=BOUND")
            return Gate()
        from safesteer.report.requirements import parse_requirements

        return Gate(parse_requirements(require, changes=changes), point, junit)

    options = [
        parameter("require", str | None, None, _REQUIRE),
        parameter("point", bool, False, _POINT),
        parameter("junit", Path | None, None, _JUNIT),
    ]
    return replace_parameter(command, "gate", options, collect)


with_change_gate = functools.partial(with_gate, changes=True)

_REQUIRE = typer.Option(
    "--require",
    metavar="'NAME>=BOUND,...'",
    help="Exit with 1 unless every figure keeps its bound; its 95% interval counts.",
)
_POINT = typer.Option("--point", help="Hold the figures to --require without their intervals.")
_JUNIT = typer.Option(
    "--junit", metavar="FILE", help="Write what --require found to this JUnit file."
)
