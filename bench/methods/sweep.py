"""Methods side by side: one base, one set of prompts, one budget of steps and completions.

    python -m bench.methods [OUTPUT] [--methods a,b] [--seeds 0,1,2] [--config RECIPE]
        [--set section.key=value] [--data-dir DIR --benchmarks alpaca,xstest-safe,gsm8k-solutions]
    python -m bench.methods [OUTPUT] --table
    python -m bench.methods --list

Each method and seed leaves OUTPUT/METHOD-seedN.json with every rate, its interval, seconds, memory,
the training's metrics and the settings. What exists is not made again: an interrupted sweep
resumes, on any machine, and several processes may share one OUTPUT (their minutes of training are
then those of a shared machine). --table prints mean and standard deviation over seeds and writes
OUTPUT/pareto.html.

Methods are changes to a recipe: the built-in model's, or that of --config (`--set model.id=` takes
another model). --list names them. Rates are on our *validation* prompts, on which choices are made,
and on --benchmarks, which are for reporting. Directions, adapters and answers are kept in
OUTPUT/work, which need not be committed; while an adapter is there, benchmarks that its JSON lacks
can be added.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.command_line import names, numbers
from bench.inputs import of_benchmarks
from bench.methods.laboratory import Laboratory, adapter_folder, measurable
from bench.methods.show import show
from bench.methods.table import METHODS, settings_of
from safesteer.config.load import load_settings
from safesteer.errors import InputError, nearest
from safesteer.files import read_json, write_json
from safesteer.runs.lock import RunLock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("output", type=Path, nargs="?", default=Path("bench/results/methods"))
    parser.add_argument("--methods", default="recipe,published", help="separated by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--config", default="smollm2-135m", help="a recipe, or its YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--data-dir", help="files of --benchmarks")
    parser.add_argument("--benchmarks", default="", help="besides our own prompt sets")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--list", action="store_true", help="list the methods")


def run(arguments: argparse.Namespace) -> None:
    """Make what is missing, then print the table."""
    if arguments.list:
        print("\n".join(f"{name:24} {method.description}" for name, method in METHODS.items()))
        return
    if not arguments.table:
        sweep(arguments)
    show(arguments.output)


def sweep(arguments: argparse.Namespace) -> None:
    """Make the results that are missing.

    Raises:
        InputError: a method is unknown, or an earlier result has other settings.
    """
    methods = names(arguments.methods)
    for name in methods:
        if name not in METHODS:
            raise InputError(f"no method named '{name}'{nearest(name, METHODS)}. Try: --list")
    overrides = [*arguments.set, *of_benchmarks(None, arguments.data_dir)]
    benchmarks = names(arguments.benchmarks)
    laboratory: Laboratory | None = None
    for seed in numbers(arguments.seeds):
        for name in methods:
            path = arguments.output / f"{name}-seed{seed}.json"
            if path.exists():
                wanted = settings_of(arguments.config, overrides, METHODS[name], seed)
                result = read_json(path)
                check_settings(path, result["settings"], wanted.model_dump(mode="json"))
                if not lacking(arguments.output, name, seed, result, benchmarks):
                    continue
            claim = arguments.output / "work" / "claims" / path.stem
            claim.mkdir(parents=True, exist_ok=True)
            try:
                lock = RunLock(claim)
            except InputError as error:
                print(f"{name}, seed {seed} is skipped: {error}", file=sys.stderr, flush=True)
                continue
            laboratory = laboratory or Laboratory(
                arguments.output,
                arguments.config,
                load_settings(arguments.config, overrides),
                overrides,
                benchmarks,
            )
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            if not path.exists():
                write_json(path, laboratory.run(name, seed))
            else:  # another process may have added to it
                result = read_json(path)
                missing = lacking(arguments.output, name, seed, result, benchmarks)
                if missing:
                    write_json(path, laboratory.complete(name, seed, result, missing))
            lock.release()


def lacking(
    output: Path, name: str, seed: int, result: dict[str, Any], benchmarks: Sequence[str]
) -> list[str]:
    """The benchmarks that a result lacks and that can still be measured."""
    method = METHODS[name]
    if method.kind not in ("base", "teacher") and not adapter_folder(output, name, seed).is_dir():
        return []
    return [each for each in measurable(method, benchmarks) if each not in result["benchmarks"]]


def check_settings(path: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError if an earlier result was made with other settings."""
    before, after = _flat(earlier), _flat(now)
    for key in before.keys() & after.keys() - {"evaluate.data_dir", "evaluate.benchmarks"}:
        if before[key] != after[key]:
            raise InputError(
                f"{path} was made with {key} = {json.dumps(before[key])}, this sweep has"
                f" {json.dumps(after[key])}. Try: the same value, or another OUTPUT"
            )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{"section.key": value}."""
    sections = {name: part for name, part in settings.items() if isinstance(part, dict)}
    return {f"{name}.{key}": part[key] for name, part in sections.items() for key in part}
