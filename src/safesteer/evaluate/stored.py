"""The evaluation's files in a run directory: eval/MODEL.json and eval/samples, written and read.

Readers take what is there. A line that is being written, or was cut off, is left out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safesteer.files import read_json, write_json, write_jsonl
from safesteer.inference import VARIANTS
from safesteer.prompts import PROMPT_SETS

Entries = dict[str, dict[str, Any]]  # {benchmark: entry of eval/MODEL.json}
Rows = dict[str, list[dict[str, Any]]]  # {benchmark: rows of eval/samples}


def write_results(
    run: Path, results: Mapping[str, Entries], samples: Mapping[str, Rows]
) -> list[Path]:
    """Write results and samples by model, in place of whatever is there; returns the files."""
    shutil.rmtree(run / "eval" / "samples", ignore_errors=True)
    files = []
    for name, entries in results.items():
        files.append(run / "eval" / f"{name}.json")
        write_json(files[-1], {"model": name, "benchmarks": entries})
        for benchmark, rows in samples[name].items():
            files.append(run / "eval" / "samples" / f"{name}-{benchmark}.jsonl")
            write_jsonl(files[-1], rows)
    return files


def read_results(run: Path) -> dict[str, Entries]:
    """{model: {benchmark: entry}} of the models that have been judged.

    Raises InputError naming a file that is damaged.
    """
    found = {name: run / "eval" / f"{name}.json" for name in VARIANTS}
    return {name: read_json(path)["benchmarks"] for name, path in found.items() if path.is_file()}


def read_samples(run: Path) -> dict[str, Rows]:
    """{model: {benchmark: rows}}; our own sets come first, the others by name."""
    found: dict[str, Rows] = {}
    for name in VARIANTS:
        files = {
            path.stem.removeprefix(f"{name}-"): path
            for path in (run / "eval" / "samples").glob(f"{name}-*.jsonl")
        }
        if files:
            found[name] = {key: read_lines(files[key]) for key in sorted(files, key=set_order)}
    return found


def set_order(name: str) -> tuple[int, str]:
    """Sorts our own prompt sets first, the harmful one leading, and the rest by name."""
    return (PROMPT_SETS.index(name) if name in PROMPT_SETS else len(PROMPT_SETS), name)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSONL file that are whole; none if there is no file."""
    rows = []
    if path.is_file():
        # Not splitlines(): a JSON string may hold U+2028, which ends no row.
        for line in path.read_text("utf-8", "replace").split("\n"):
            with suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]
