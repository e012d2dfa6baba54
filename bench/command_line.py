"""Command lines of the scripts: one parser each, packages with sub-commands, one-line errors.

A script is a module with a docstring that states its purpose and output, `add_arguments(parser)`
and `run(arguments)`. Only the chosen script is imported, so that help appears at once.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safesteer.cli.silence import silence_libraries
from safesteer.errors import SafeSteerError


def run_script(name: str, called: str | None = None) -> None:
    """Run the module `name`, such as `research.teachers`, with the options of the command line.

    `called` is what follows `python -m`, if it is not the module's own name.
    """
    silence_libraries(debug=False)
    parser = argparse.ArgumentParser(prog=f"python -m {called or name}", **_help(name))
    script = import_module(name)
    script.add_arguments(parser)
    _run(script, parser.parse_args())


def run_package(name: str, scripts: Sequence[str]) -> None:
    """Run the script of a package, such as `bench.speed`, that the first argument names."""
    silence_libraries(debug=False)
    parser = argparse.ArgumentParser(prog=f"python -m {name}", **_help(name))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    chosen: Any = None
    for script in scripts:
        texts = _help(f"{name}.{script}")
        command = commands.add_parser(script, help=texts["description"].splitlines()[0], **texts)
        if sys.argv[1:2] == [script]:
            chosen = import_module(f"{name}.{script}")
            chosen.add_arguments(command)
    _run(chosen, parser.parse_args())


def names(text: str) -> list[str]:
    """The parts of an option that are separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[int]:
    """The whole numbers of an option that are separated by commas."""
    return [int(part) for part in names(text)]


def _help(name: str) -> dict[str, Any]:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8")))
    return {"description": text, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _run(script: Any, arguments: argparse.Namespace) -> None:
    try:
        script.run(arguments)
    except SafeSteerError as error:
        raise SystemExit(str(error)) from None
