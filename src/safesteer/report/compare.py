"""Runs side by side: what each gained, what it cost, and which are not beaten by another.

A run is compared by its aligned model; a plain evaluation file (``safesteer eval --json``) by the
model that it judged. The first one is what the others are measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safesteer.errors import InputError
from safesteer.evaluate.stored import read_samples, set_order
from safesteer.files import read_json
from safesteer.models.files import short_name
from safesteer.report import plots
from safesteer.report.results import DRIFT, paired
from safesteer.report.template import environment
from safesteer.report.words import (
    KINDS,
    better_words,
    duration,
    higher_is_better,
    interval_text,
    is_rate,
    label,
    metric_words,
    size,
    value_text,
)
from safesteer.runs.directory import RunDirectory

# Key of an entry -> what differs where it is not the same.
_MUST_AGREE = {
    "metric": "metric",
    "judge": "judge",
    "source": "source of prompts",
    "harness": "way of asking",
    "against": "opponent",
    "dtype": "type of numbers",  # of drift, which rounding alone raises
}
_SHOWN = ("metric", "value", "ci95", "n", "judge", "kind", "dtype")


@dataclass
class Entrant:
    """What is compared.

    Attributes:
        name: unique among those compared.
        model: the base's id; empty for an evaluation file.
        benchmarks: entries of eval/aligned.json or of the file.
        base: entries of eval/base.json.
        samples: {prompt set: rows of the aligned model}.
        answer_tokens: longest answer; None where it is not known.
        seconds, memory: of all stages; None for an evaluation file.
    """

    name: str
    benchmarks: dict[str, Any]
    model: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    answer_tokens: int | None = None
    seconds: float | None = None
    memory: int | None = None


def read_entrants(paths: Sequence[str | Path]) -> list[Entrant]:
    """Read runs and evaluation files. InputError for one that is missing or not finished."""
    read = [_read(Path(path)) for path in paths]
    # The shortest ends of the paths that tell them apart.
    for depth in (1, 2, 3, 99):
        names = ["/".join(Path(path).resolve().parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    else:
        raise InputError("the same run is named twice; name each once")
    bare = [name.removesuffix(".json") for name in names]
    if len(set(bare)) == len(bare):
        names = bare
    for entrant, name in zip(read, names, strict=True):
        entrant.name = name
    return read


def _read(path: Path) -> Entrant:
    if path.is_file():
        content = read_json(path)
        benchmarks = content.get("benchmarks") if isinstance(content, dict) else None
        if not isinstance(benchmarks, dict) or not all(
            isinstance(entry, dict) and {"metric", "value", "n"} <= entry.keys()
            for entry in benchmarks.values()
        ):
            raise InputError(
                f"{path} is no evaluation: make one with `safesteer eval MODEL --json FILE`"
            )
        return Entrant(path.name, benchmarks, answer_tokens=content.get("max_new_tokens"))
    run = RunDirectory.load(path)
    if not run.output_hashes("evaluate"):
        raise InputError(f"{path} has not been evaluated; finish it with `safesteer eval {path}`")
    folder = run.path / "eval"
    costs = run.summary()
    return Entrant(
        path.name,
        read_json(folder / "aligned.json")["benchmarks"],
        model=run.settings.model.id,
        base=read_json(folder / "base.json")["benchmarks"],
        samples=read_samples(run.path).get("aligned", {}),
        answer_tokens=run.settings.evaluate.max_new_tokens,
        seconds=sum(cost.seconds for cost in costs),
        memory=max(cost.peak_memory_bytes for cost in costs),
    )


# Comparing ---------------------------------------------------------------------------------------


def why_not_comparable(name: str, first: Entrant, other: Entrant) -> str:
    """Why two figures of a benchmark must not be compared; empty if nothing speaks against it."""
    a, b = first.benchmarks[name], other.benchmarks[name]
    for key, what in _MUST_AGREE.items():
        if a.get(key) != b.get(key):
            shown = f" ({b[key]})" if isinstance(b.get(key), str) else ""
            return f"another {what}{shown}"
    if name in DRIFT and first.model and other.model and first.model != other.model:
        return "another base"
    asked, asked_too = _asked(a), _asked(b)
    if asked != asked_too:
        return f"other prompts ({asked_too} instead of {asked})"
    mine, theirs = first.samples.get(name), other.samples.get(name)
    if mine and theirs and [row["prompt"] for row in mine] != [row["prompt"] for row in theirs]:
        return "other prompts"
    if None not in (first.answer_tokens, other.answer_tokens) and (
        first.answer_tokens != other.answer_tokens
    ):
        return f"other length of answers ({other.answer_tokens} instead of {first.answer_tokens})"
    return ""


def _asked(entry: dict[str, Any]) -> int:
    """How many prompts an entry is about, those without a verdict included."""
    by_judge = entry.get("judges", {}).get(entry.get("judge"), {})
    return int(entry["n"]) + int(entry.get("no_verdict") or by_judge.get("no_verdict", 0))


def compare(entrants: Sequence[Entrant]) -> dict[str, Any]:
    """What the JSON file holds: benchmarks, tests, costs, axes, and who is on the front."""
    first = entrants[0]
    names = dict.fromkeys(name for entrant in entrants for name in entrant.benchmarks)
    known = {n: next(e.benchmarks[n] for e in entrants if n in e.benchmarks) for n in names}
    order = sorted(
        names, key=lambda n: (KINDS.index(known[n].get("kind") or "capability"), *set_order(n))
    )
    rows = []
    for name in order:
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
        rows.append({"benchmark": name, "kind": known[name].get("kind"), "runs": cells})
    axes = _axes(entrants, rows)
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
                "on_front": entrant.name in front({k: a["values"] for k, a in axes.items()}),
            }
            for entrant in entrants
        ],
        "axes": {kind: axis["benchmarks"] for kind, axis in axes.items()},
    }


def _versus(name: str, first: Entrant, other: Entrant) -> str:
    """The paired test on the same prompts, in words; empty where there is nothing to pair."""
    if first is other or name not in first.benchmarks:
        return ""
    mine, theirs = first.samples.get(name, []), other.samples.get(name, [])
    found = paired(other.benchmarks[name], theirs, first.benchmarks[name], mine)
    return str(found["words"]) if found else ""


def _axes(entrants: Sequence[Entrant], rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per kind the mean of the benchmarks that all share, turned so that higher is better.

    Drift stands in for capability where no capability benchmark is shared.
    """
    axes = {}
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
    """Names that no other beats: as good on every axis and better on one. `axes`: higher is better.

    Without axes there is no front.
    """
    if not axes:
        return []
    names = list(next(iter(axes.values())))

    def beats(a: str, b: str) -> bool:
        pairs = [(values[a], values[b]) for values in axes.values()]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    return [name for name in names if not any(beats(other, name) for other in names)]


# Showing -----------------------------------------------------------------------------------------


def table_rows(
    comparison: dict[str, Any],
) -> tuple[list[list[str]], list[str]]:
    """Rows of words, the first cell naming each, and notes that they refer to."""
    runs = comparison["runs"]
    rows, notes = [], []
    for row in comparison["benchmarks"]:
        cells = []
        for run in runs:
            cell = row["runs"].get(run["name"])
            text = "" if cell is None else value_text(cell)
            if cell is not None and interval_text(cell):
                text += f" ({interval_text(cell)})"
            if cell is not None and cell["not_comparable"]:
                text += " *"
                notes.append(
                    f"* {label(row['benchmark'])} of {run['name']} is not comparable with"
                    f" {comparison['first']}: {cell['not_comparable']}"
                )
            cells.append(text)
        known = next(iter(row["runs"].values()))
        name = label(row["benchmark"])
        if row["benchmark"] not in DRIFT:
            name += f", {metric_words(known['metric'])}"
        rows.append([f"{name} ({better_words(known)})", *cells])
    costs = {"seconds": ("time", duration), "peak_memory_bytes": ("peak memory", size)}
    for key, (title, show) in costs.items():
        if any(run[key] is not None for run in runs):
            rows.append([title, *("" if run[key] is None else show(run[key]) for run in runs)])
    if comparison["axes"]:
        rows.append(
            [
                "not beaten by another (Pareto front)",
                *("yes" if run["on_front"] else "no" for run in runs),
            ]
        )
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
    """What the front was made of."""
    titles = {"safety": "safety", "over_refusal": "answering", "capability": "capability"}
    return [
        f"{titles[kind]}: {', '.join(map(label, names))}"
        for kind, names in comparison["axes"].items()
    ]


def render_comparison(comparison: dict[str, Any]) -> str:
    """The comparison as a page like report.html."""
    rows, notes = table_rows(comparison)
    titles = {"over_refusal": "harmless requests answered", "capability": "capability"}
    planes = []
    for kind, title in titles.items():
        if {"safety", kind} <= comparison["axes"].keys():
            axes = {
                axis: {run["name"]: run["axes"][axis] for run in comparison["runs"]}
                for axis in (kind, "safety")
            }
            best = front(axes)
            points = [
                (name, x, axes["safety"][name], name in best) for name, x in axes[kind].items()
            ]
            planes.append(
                {
                    "title": f"Safety against {'over-refusal' if kind == 'over_refusal' else kind}",
                    "chart": plots.plane(points, title, "safety"),
                    "axes": ", ".join(
                        map(label, comparison["axes"][kind] + comparison["axes"]["safety"])
                    ),
                }
            )
    names = [run["name"] for run in comparison["runs"]]
    models = {short_name(run["model"]) for run in comparison["runs"] if run["model"]}
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            names=names,
            models=sorted(models),
            rows=rows,
            notes=notes,
            tests=paired_words(comparison),
            planes=planes,
            first=comparison["first"],
        )
    )
