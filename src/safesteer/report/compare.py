"""Comparison of runs: results, costs, paired tests and the Pareto front.

A run is compared by its aligned model, an evaluation file (``safesteer eval --json``) by the model
that it evaluated. The first one is the reference for all others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from safesteer.errors import InputError, without_advice
from safesteer.evaluate.metrics import DRIFT, KINDS
from safesteer.evaluate.stored import read_results, read_samples
from safesteer.files import read_json
from safesteer.models.files import short_name
from safesteer.report import plots
from safesteer.report.results import paired
from safesteer.report.template import render
from safesteer.report.words import (
    benchmarks_of,
    better_words,
    duration,
    figure,
    higher_is_better,
    is_rate,
    label,
    size,
    title,
    without_verdict,
)
from safesteer.runs.directory import RunDirectory

# Keys of an entry that must agree in comparable figures, and their names.
_MUST_AGREE = {
    "metric": "metric",
    "judge": "judge",
    "source": "source of prompts",
    "harness": "prompt format",
    "against": "opponent",
    "dtype": "dtype",  # of drift, which rounding alone raises
}
_SHOWN = ("metric", "value", "ci95", "n", "judge", "kind", "dtype")


class Entry(TypedDict):
    """One benchmark of an evaluation file: the keys that a comparison reads."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)  # type: ignore[misc]
    metric: str
    value: float | None
    n: Annotated[int, Field(ge=0)]
    kind: NotRequired[Literal["safety", "over_refusal", "capability"] | None]
    ci95: NotRequired[tuple[float | None, float | None] | None]
    judge: NotRequired[str | None]
    judges: NotRequired[dict[str, dict[str, Any]] | None]
    no_verdict: NotRequired[int | None]
    dtype: NotRequired[str | None]


class Evaluation(TypedDict):
    """An evaluation file."""

    benchmarks: Annotated[dict[str, Entry], Field(min_length=1)]
    max_new_tokens: NotRequired[int | None]


@dataclass
class Entrant:
    """One side of a comparison: a run, or an evaluation file, of which less is known."""

    name: str  # unique in the comparison
    benchmarks: dict[str, Any]  # entries of eval/aligned.json or of the file
    model: str = ""  # the base's id; empty for an evaluation file
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # {prompt set: rows}
    answer_tokens: int | None = None  # limit on the length of answers; None where it is unknown
    seconds: float | None = None  # of all stages
    memory: int | None = None  # peak bytes of all stages


def read_entrants(paths: Sequence[str | Path]) -> list[Entrant]:
    """Read runs and evaluation files; InputError for one missing, unfinished or named twice."""
    read = [_read(path) for path in paths]
    # The shortest ends of the paths that differ.
    for depth in (1, 2, 3, 99):
        names = ["/".join(Path(path).resolve().parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    else:
        raise InputError("the same run is named twice. Try: name each run once")
    bare = [name.removesuffix(".json") for name in names]
    if len(set(bare)) == len(bare):
        names = bare
    for entrant, name in zip(read, names, strict=True):
        entrant.name = name
    return read


def _read(path: str | Path) -> Entrant:
    if os.path.isfile(path):  # False for a name that is too long, too
        return _read_file(Path(path))
    run = RunDirectory.load(path)
    if not run.output_hashes("evaluate"):
        raise InputError(f"{path} has no complete evaluation. Try: `safesteer eval {path}`")
    run.check_outputs("evaluate")
    costs = run.summary()
    return Entrant(
        run.path.name,
        read_results(run.path)["aligned"],
        model=run.settings.model.id,
        samples=read_samples(run.path).get("aligned", {}),
        answer_tokens=run.settings.evaluate.max_new_tokens,
        seconds=sum(cost.seconds for cost in costs),
        memory=max(cost.peak_memory_bytes for cost in costs),
    )


def _read_file(path: Path) -> Entrant:
    remedy = "Try: the folder of a run, or what `safesteer eval MODEL --json FILE` wrote"
    try:
        content = read_json(path)
        TypeAdapter(Evaluation).validate_python(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        problem = f" (at '{where}')" if where else ""
        raise InputError(f"{path} is no evaluation{problem}. {remedy}") from None
    except InputError as error:
        raise InputError(f"{without_advice(error)}. {remedy}") from None
    for name, entry in content["benchmarks"].items():
        if is_rate(entry) and not 0 <= (entry["value"] or 0) <= 1:
            raise InputError(f"{path}: {name} is {entry['value']}, and a share of 1. {remedy}")
    return Entrant(path.name, content["benchmarks"], answer_tokens=content.get("max_new_tokens"))


def why_not_comparable(name: str, first: Entrant, other: Entrant) -> str:
    """Why two figures of a benchmark are not comparable; empty if they are."""
    a, b = first.benchmarks[name], other.benchmarks[name]
    for key, what in _MUST_AGREE.items():
        if a.get(key) != b.get(key):
            shown = f" ({b[key]})" if isinstance(b.get(key), str) else ""
            return f"different {what}{shown}"
    if name in DRIFT and first.model and other.model and first.model != other.model:
        return "different base"
    prompts, others = _prompts(a), _prompts(b)
    if prompts != others:
        return f"different prompts ({others} instead of {prompts})"
    mine, theirs = first.samples.get(name), other.samples.get(name)
    if mine and theirs and [row["prompt"] for row in mine] != [row["prompt"] for row in theirs]:
        return "different prompts"
    lengths = first.answer_tokens, other.answer_tokens
    if None not in lengths and lengths[0] != lengths[1]:
        return f"different answer length ({lengths[1]} instead of {lengths[0]})"
    return ""


def _prompts(entry: dict[str, Any]) -> int:
    """The number of prompts of an entry, including those without a verdict."""
    return int(entry["n"]) + without_verdict(entry)


def compare(entrants: Sequence[Entrant]) -> dict[str, Any]:
    """The content of the JSON file: benchmarks, tests, costs, axes and the Pareto front."""
    first = entrants[0]
    rows = []
    for name, known in benchmarks_of({e.name: e.benchmarks for e in entrants}).items():
        cells = {}
        for entrant in entrants:
            entry = entrant.benchmarks.get(name)
            if entry is None:
                continue
            reason = why_not_comparable(name, first, entrant) if name in first.benchmarks else ""
            cells[entrant.name] = {
                **{key: entry.get(key) for key in _SHOWN},
                "not_comparable": reason,
                "versus_first": "" if reason else _versus(name, first, entrant),
            }
        rows.append({"benchmark": name, "kind": known.get("kind"), "runs": cells})
    axes = _axes(entrants, rows)
    best = front({kind: axis["values"] for kind, axis in axes.items()})
    return {
        "first": first.name,
        "benchmarks": rows,
        "runs": [
            {
                "name": entrant.name,
                "model": entrant.model or None,
                "seconds": entrant.seconds,
                "peak_memory_bytes": entrant.memory,
                "axes": {kind: axis["values"][entrant.name] for kind, axis in axes.items()},
                "on_front": entrant.name in best,
            }
            for entrant in entrants
        ],
        "axes": {kind: axis["benchmarks"] for kind, axis in axes.items()},
    }


def _versus(name: str, first: Entrant, other: Entrant) -> str:
    """The paired test on the same prompts, in words; empty without pairs."""
    if first is other or name not in first.benchmarks:
        return ""
    mine, theirs = first.samples.get(name, []), other.samples.get(name, [])
    found = paired(other.benchmarks[name], theirs, first.benchmarks[name], mine)
    return str(found["words"]) if found else ""


def _axes(entrants: Sequence[Entrant], rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The mean of the shared benchmarks of each kind, turned so that higher is better.

    Drift stands in for capability where no capability benchmark is shared.
    """
    axes: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        shared = [
            row
            for row in rows
            if row["kind"] == kind
            and len(row["runs"]) == len(entrants)
            and all(
                not cell["not_comparable"] and is_rate(cell) and cell["value"] is not None
                for cell in row["runs"].values()
            )
        ]
        measured = [row for row in shared if row["benchmark"] not in DRIFT] or shared
        if measured:
            axes[kind] = {
                "benchmarks": [row["benchmark"] for row in measured],
                "values": {
                    entrant.name: sum(_good(row["runs"][entrant.name]) for row in measured)
                    / len(measured)
                    for entrant in entrants
                },
            }
    return axes


def _good(cell: dict[str, Any]) -> float:
    value = float(cell["value"])
    return value if higher_is_better(cell) else 1 - value


def front(axes: dict[str, dict[str, float]]) -> list[str]:
    """The Pareto front: names that no other beats, being as good on every axis and better on one.

    `axes` is {axis: {name: value}}, where higher is better. Without axes there is no front.
    """
    if not axes:
        return []
    names = list(next(iter(axes.values())))

    def beats(a: str, b: str) -> bool:
        pairs = [(values[a], values[b]) for values in axes.values()]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    return [name for name in names if not any(beats(other, name) for other in names)]


def table_rows(comparison: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Rows of words, each named by its first cell, and the notes that they refer to."""
    runs = comparison["runs"]
    rows, notes = [], []
    for row in comparison["benchmarks"]:
        cells = []
        for run in runs:
            cell = row["runs"].get(run["name"])
            text = figure(cell, count=False)
            if cell is not None and cell["not_comparable"]:
                text += " *"
                notes.append(
                    f"* {label(row['benchmark'])} of {run['name']} is not comparable with"
                    f" {comparison['first']}: {cell['not_comparable']}"
                )
            cells.append(text)
        known = next(iter(row["runs"].values()))
        rows.append([f"{title(row['benchmark'], known)} ({better_words(known)})", *cells])
    costs = {"seconds": ("time", duration), "peak_memory_bytes": ("peak memory", size)}
    for key, (name, show) in costs.items():
        if any(run[key] is not None for run in runs):
            rows.append([name, *("" if run[key] is None else show(run[key]) for run in runs)])
    if comparison["axes"]:
        cells = ["yes" if run["on_front"] else "no" for run in runs]
        rows.append(["on the Pareto front", *cells])
    return rows, notes


def paired_words(comparison: dict[str, Any]) -> list[str]:
    """The paired tests against the first, a line each."""
    return [
        f"{label(row['benchmark'])}, {name} against {comparison['first']}: {cell['versus_first']}"
        for row in comparison["benchmarks"]
        for name, cell in row["runs"].items()
        if cell["versus_first"]
    ]


def axis_words(comparison: dict[str, Any]) -> list[str]:
    """The benchmarks behind each axis of the front."""
    titles = {"safety": "safety", "over_refusal": "answering", "capability": "capability"}
    return [
        f"{titles[kind]}: {', '.join(map(label, names))}"
        for kind, names in comparison["axes"].items()
    ]


def render_comparison(comparison: dict[str, Any]) -> str:
    """The comparison as an HTML page in the style of report.html."""
    rows, notes = table_rows(comparison)
    models = {short_name(run["model"]) for run in comparison["runs"] if run["model"]}
    return render(
        "compare.html.j2",
        names=[run["name"] for run in comparison["runs"]],
        models=sorted(models),
        rows=rows,
        notes=notes,
        tests=paired_words(comparison),
        planes=_planes(comparison),
        first=comparison["first"],
    )


def _planes(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Charts of safety against over-refusal and against capability, where both axes exist."""
    planes = []
    for kind, name, axis_title in (
        ("over_refusal", "over-refusal", "harmless requests answered"),
        ("capability", "capability", "capability"),
    ):
        if not {"safety", kind} <= comparison["axes"].keys():
            continue
        axes = {
            axis: {run["name"]: run["axes"][axis] for run in comparison["runs"]}
            for axis in (kind, "safety")
        }
        best = front(axes)
        points = [(run, x, axes["safety"][run], run in best) for run, x in axes[kind].items()]
        planes.append(
            {
                "title": f"Safety against {name}",
                "chart": plots.plane(points, axis_title, "safety"),
                "across": ", ".join(map(label, comparison["axes"][kind])),
                "up": ", ".join(map(label, comparison["axes"]["safety"])),
            }
        )
    return planes
