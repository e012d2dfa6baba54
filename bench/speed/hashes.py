"""Cost of hashing the base and the outputs, as a share of a run and of the commands that read it.

    python -m bench.speed hashes OUTPUT_DIR [MODEL] [--set section.key=value]

Makes a run of the model in OUTPUT_DIR/run, with its recipe, unless it is there, and then uses it.
Every call of `sha256_file` is timed inside the commands themselves, in this process. Prints for
each command its seconds, those of hashing, and their share, and at the end the seconds of the run's
stages. The file system's cache is as a user finds it: warm.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.tables import table_head, table_row
from bench.timing import timed
from safesteer import files
from safesteer.cli.main import main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("output", type=Path)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")


def run(arguments: argparse.Namespace) -> None:
    """Print a table."""
    out = arguments.output
    out.mkdir(parents=True, exist_ok=True)
    prompts = out / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Name a color."}) + "\n", "utf-8")
    options = [part for value in arguments.set for part in ("--set", value)]
    run_ = str(out / "run")
    commands = {
        "run": ["run", arguments.model, "-o", run_, *options],
        "run, all done": ["run", run_],
        "report": ["report", run_],
        "generate, one prompt": [
            *("generate", run_, "--prompts", str(prompts), "--output", str(out / "answers.jsonl")),
            "--force",
        ],
        "export adapter": [
            *("export", run_, "--format", "adapter", "--output", str(out / "adapter"), "--force"),
        ],
    }
    print(table_head("command", "seconds", "hashing", "share", "files hashed", "MB"))
    for name, words in commands.items():
        with hashing() as hashed:
            code, seconds = timed(lambda words=words: main([*words, "--quiet"]))
        if code:
            raise SystemExit(f"safesteer {' '.join(words)} failed")
        cost = sum(took for took, _ in hashed)
        megabytes = sum(size for _, size in hashed) / 1e6
        cells = f"{seconds:.1f}", f"{cost:.3f} s", f"{cost / seconds:.2%}", len(hashed)
        print(table_row(name, *cells, f"{megabytes:.0f}"), flush=True)
    stages = files.read_json(out / "run" / "manifest.json")["stages"].values()
    print(f"\nthe run's stages took {sum(stage['seconds'] for stage in stages):.0f} s")


@contextmanager
def hashing() -> Iterator[list[tuple[float, int]]]:
    """(seconds, bytes) of every file that is hashed within the `with`."""
    found: list[tuple[float, int]] = []
    plain = files.sha256_file

    def measured(path: str | Path) -> str:
        digest, seconds = timed(lambda: plain(path))
        found.append((seconds, Path(path).stat().st_size))
        return digest

    # Modules import the function by its name, some when a command starts.
    files.sha256_file = measured
    users: list[Any] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("safesteer.") and getattr(module, "sha256_file", None) is plain:
            module.sha256_file = measured  # type: ignore[attr-defined]
            users.append(module)
    try:
        yield found
    finally:
        files.sha256_file = plain
        for module in users:
            module.sha256_file = plain
        for name, module in list(sys.modules.items()):
            if name.startswith("safesteer.") and getattr(module, "sha256_file", None) is measured:
                module.sha256_file = plain  # type: ignore[attr-defined]
