"""Results of a sweep as a Markdown table and as the points of a Pareto plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.evidence.solutions import SOLUTIONS
from bench.inputs import OWN
from bench.methods.table import METHODS
from bench.tables import mean_and_deviation, table_head, table_row
from safesteer.errors import InputError
from safesteer.files import read_json, write_text
from safesteer.report.compare import Entrant, compare, render_comparison

COLUMNS = (*OWN, "agreement")
Found = dict[str, list[dict[str, Any]]]  # {method: one result per seed}


def show(folder: Path) -> None:
    """Print the table of `folder` and write its pareto.html.

    Raises:
        InputError: the folder holds no results.
    """
    found = read_results(folder)
    entrants = means(found)
    comparison = compare(entrants) if entrants else {"runs": []}  # the base or teacher alone
    print(table(found, [run["name"] for run in comparison["runs"] if run["on_front"]]))
    if entrants:
        write_text(folder / "pareto.html", render_comparison(comparison))


def read_results(folder: Path) -> Found:
    """The results in `folder`, in the order of METHODS.

    Raises:
        InputError: there are none.
    """
    contents = [read_json(path) for path in sorted(folder.glob("*-seed*.json"))]
    names = dict.fromkeys([*METHODS, *(content["method"] for content in contents)])
    found = {name: [c for c in contents if c["method"] == name] for name in names}
    if not contents:
        raise InputError(f"{folder} holds no results. Try: the OUTPUT of an earlier sweep")
    return {name: runs for name, runs in found.items() if runs}


def means(found: Found) -> list[Entrant]:
    """Means over seeds of every method whose agreement with the base is known.

    They have no intervals, since those of a result belong to one seed.
    """
    entrants = []
    for name, runs in found.items():
        entries = {
            key: dict(entry)
            for key, entry in runs[0]["benchmarks"].items()
            if key not in SOLUTIONS  # an axis would say nothing that agreement does not
        }
        for key in list(entries):
            values = [value for run in runs if (value := _share(run, key)) is not None]
            if len(values) < len(runs):  # not known for every seed
                del entries[key]
            else:
                entries[key] |= {"value": statistics.mean(values), "ci95": None}
        if name == "base":
            known = (each[0]["benchmarks"].get("agreement") for each in found.values())
            if (agreement := next(filter(None, known), None)) is not None:
                entries["agreement"] = {**agreement, "value": 1.0, "ci95": None}
        if "agreement" in entries:
            entrants.append(Entrant(name, entries))
    return entrants


def table(found: Found, front: Sequence[str] = ()) -> str:
    """Mean and standard deviation over seeds of every method, in Markdown.

    Methods of `front`, the Pareto front of safety, answering and agreement, are bold.
    """
    metrics = {
        name: entry["metric"]
        for runs in found.values()
        for name, entry in runs[0]["benchmarks"].items()
    }
    columns = [*COLUMNS, *sorted(metrics.keys() - {*COLUMNS, "divergence"})]
    heads = [
        f"{column}: attacks" if metrics.get(column) == "attack_success_rate" else column
        for column in columns
    ]
    more = ("KL, 1e-3 nats", "train, min", "memory, GB")
    lines = [table_head("method", "seeds", *heads, *more)]
    for name, runs in found.items():
        cells = [mean_and_deviation([_share(run, column) for run in runs]) for column in columns]
        others = [
            ([_share(run, "divergence") for run in runs], 1000),
            ([run["seconds"]["train"] for run in runs], 1 / 60),
            ([run["peak_memory_bytes"] for run in runs], 1e-9),
        ]
        cells += [mean_and_deviation(values, scale=scale, unit="") for values, scale in others]
        lines.append(table_row(f"**{name}**" if name in front else name, len(runs), *cells))
    return "\n".join(lines)


def _share(run: dict[str, Any], name: str) -> float | None:
    return (run["benchmarks"].get(name) or {}).get("value")
