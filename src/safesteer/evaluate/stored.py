"""Files of an evaluation in a run directory: eval/VARIANT.json and eval/samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safesteer.files import read_json, read_lines, write_json, write_jsonl
from safesteer.inference import VARIANTS
from safesteer.prompts import PROMPT_SETS

Entries = dict[str, dict[str, Any]]  # {benchmark: entry of eval/VARIANT.json}
Rows = dict[str, list[dict[str, Any]]]  # {benchmark: rows of eval/samples}


def write_results(
    run: Path, results: Mapping[str, Entries], samples: Mapping[str, Rows]
) -> list[Path]:
    """Write each variant's results and samples, replacing earlier ones; returns the files.

    Samples are private: they hold answers.
    """
    for earlier in (run / "eval" / "samples").glob("*.jsonl"):
        earlier.unlink()
    files = []
    for name, entries in results.items():
        files.append(run / "eval" / f"{name}.json")
        write_json(files[-1], {"model": name, "benchmarks": entries})
        for benchmark, rows in samples[name].items():
            files.append(run / "eval" / "samples" / f"{name}-{benchmark}.jsonl")
            write_jsonl(files[-1], rows, private=True)
    return files


def read_results(run: Path) -> dict[str, Entries]:
    """Read {variant: {benchmark: entry}} of the evaluated variants."""
    found = {name: run / "eval" / f"{name}.json" for name in VARIANTS}
    return {name: read_json(path)["benchmarks"] for name, path in found.items() if path.is_file()}


def read_samples(run: Path) -> dict[str, Rows]:
    """Read {variant: {benchmark: rows}}, benchmarks in the order of `set_order`."""
    found: dict[str, Rows] = {}
    for name in VARIANTS:
        files = {
            path.stem.removeprefix(f"{name}-"): path
            for path in (run / "eval" / "samples").glob(f"{name}-*.jsonl")
        }
        if files:
            found[name] = {key: read_rows(files[key]) for key in sorted(files, key=set_order)}
    return found


def set_order(name: str) -> tuple[int, str]:
    """Sort key of benchmarks: our own prompt sets first, then the others by name."""
    return (PROMPT_SETS.index(name) if name in PROMPT_SETS else len(PROMPT_SETS), name)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete objects of a JSONL file, which may be missing or still being written."""
    lines = read_lines(path) if path.is_file() else ()
    return [row for row in lines if isinstance(row, dict)]
