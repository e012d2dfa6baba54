"""Results of an evaluation for report.html: summary, columns, tables and paired tests."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from safesteer.evaluate.metrics import ATTACK_SUCCESS_RATE, DRIFT, KINDS, REFUSAL_RATE
from safesteer.evaluate.paired import paired_change
from safesteer.evaluate.stored import set_order
from safesteer.inference import VARIANTS
from safesteer.prompts import PROMPT_SETS
from safesteer.report import charts, plots
from safesteer.report.findings import Findings
from safesteer.report.rows import repair_lines
from safesteer.report.words import (
    KIND_TITLES,
    Entry,
    benchmarks_of,
    better_arrow,
    better_words,
    dtype_words,
    figure,
    interval_text,
    is_rate,
    judged_by,
    kind_of,
    label,
    metric_words,
    percent,
    title,
    value_text,
    without_verdict,
)

_GOALS = {
    "safety": "requests that it should refuse",
    "over_refusal": "requests that it should answer",
    "capability": "what must not change",
}


def lead(findings: Findings) -> str:
    """The result in one sentence."""
    base, aligned = findings.results.get("base", {}), findings.results.get("aligned")
    if aligned is None:
        return "This run has not been evaluated yet."
    clauses: dict[str, str] = {}  # {verb: what follows it}
    for kind in KINDS[:2]:
        name = headline(aligned, kind)
        if name is None:
            continue
        verb, words = _did(name, aligned[name])
        before = base.get(name)
        if before is not None and before.get("value") is not None:
            words += f" (base: {value_text(before)})"
        clauses[verb] = f"{clauses[verb]} and {words}" if verb in clauses else words
    if "agreement" in aligned:
        agreement = aligned["agreement"]
        words = f"the base's next token in {percent(agreement['value'])} of cases"
        if dtype := dtype_words(agreement):
            words += f" (measured {dtype}, where rounding alone lowers it)"
        clauses["predicts"] = words
    *first, last = [f"{verb} {words}" for verb, words in clauses.items()] or [""]
    joined = ", ".join(first) + (", and " if first else "") + last
    return f"The aligned model {joined}." if joined else ""


def _did(name: str, entry: dict[str, Any]) -> tuple[str, str]:
    """What a model did on a benchmark: `refuses`, `80.0% of harmful requests`."""
    prompts = label(name) if name in PROMPT_SETS else f"the prompts of {name}"
    share = f"{value_text(entry)} of {prompts}"
    if entry["metric"] == REFUSAL_RATE:
        return "refuses", share
    if entry["metric"] == ATTACK_SUCCESS_RATE:
        return ("answers" if metric_words(entry) == "not refused" else "complies with"), share
    return "has", f"{value_text(entry)} on {name} ({metric_words(entry)})"


def headline(benchmarks: dict[str, Any], kind: str) -> str | None:
    """The benchmark that stands for its kind: our own set, or the first; drift comes last."""
    names = [name for name, entry in benchmarks.items() if entry.get("kind") == kind]
    names.sort(key=lambda name: (name in DRIFT, *set_order(name)[:1]))
    return names[0] if names else None


def columns(findings: Findings) -> list[dict[str, Any]]:
    """A column per kind of benchmark: its headline and every interval."""
    aligned = findings.results.get("aligned", {})
    made = []
    for kind in KINDS:
        name = headline(aligned, kind)
        if name is None:
            continue
        entry = aligned[name]
        before = findings.results.get("base", {}).get(name)
        names = sorted(
            (n for n, e in aligned.items() if e.get("kind") == kind and is_rate(e)), key=set_order
        )
        made.append(
            {
                "title": KIND_TITLES[kind],
                "goal": _GOALS[kind],
                "what": title(name, entry),
                "before": value_text(before) if before else "",
                "after": value_text(entry),
                "ci": interval_text(entry),
                "n": entry["n"],
                **_split(change_words(findings, name)),
                "rows": [_interval_row(findings, n) for n in names],
                "more": [
                    f"{label(n)}: {figure(e, count=False)}"
                    for n, e in aligned.items()
                    if e.get("kind") == kind and not is_rate(e)
                ],
            }
        )
    return made


def both_sides(findings: Findings) -> Markup | None:
    """A plane of what is refused rightly and wrongly, with arrows from base to aligned model."""
    sides = {name: findings.results.get(name, {}) for name in ("base", "aligned")}

    def share(model: str, name: str) -> plots.Share | None:
        entry = sides[model].get(name, {})
        if entry.get("metric") != REFUSAL_RATE or entry.get("value") is None:
            return None
        return plots.Share(entry["value"], *(entry.get("ci95") or [entry["value"]] * 2))

    arrows = []
    for name in PROMPT_SETS[1:]:
        base, aligned = (
            (x, y) if (x := share(model, name)) and (y := share(model, PROMPT_SETS[0])) else None
            for model in sides
        )
        if base and aligned:
            arrows.append((name, base, aligned))
    if not arrows:
        return None
    return plots.both_sides(arrows, "harmless side refused", "harmful requests refused")


def repairs(findings: Findings) -> list[str]:
    """What was found of the base's wrong refusals, a paragraph each."""
    return [] if findings.repairs is None else repair_lines(findings.repairs)


def _split(words: str) -> dict[str, str]:
    """`no detectable difference (...)` as verdict and details."""
    verdict, _, details = words.partition(" (")
    return {"words": verdict, "details": details.removesuffix(")")}


def _interval_row(findings: Findings, name: str) -> dict[str, Any]:
    bars = []
    for model in VARIANTS:
        entry = findings.results.get(model, {}).get(name)
        if entry is None or entry.get("value") is None:
            continue
        low, high = entry.get("ci95") or (entry["value"], entry["value"])
        text = f"{model} {value_text(entry)} ({interval_text(entry)}, n = {entry['n']})"
        bars.append(charts.Bar(model, entry["value"], low, high, text))
    aligned = findings.results["aligned"][name]
    row_name = title(name, aligned)
    return {
        "label": row_name,
        "better": better_words(aligned),
        "chart": charts.intervals(bars, (0.0, 1.0), row_name),
    }


def change_words(findings: Findings, name: str) -> str:
    """The paired test of the aligned model against the base; empty where there is none."""
    entry = findings.results.get("aligned", {}).get(name, {})
    versus = entry.get("versus_base")
    if versus is None and entry:
        rows = findings.samples.get(name, {})
        base = findings.results.get("base", {}).get(name)
        versus = paired(entry, rows.get("aligned", []), base, rows.get("base", []))
    return str(versus["words"]) if versus else ""


def paired(
    entry: dict[str, Any],
    rows: list[dict[str, Any]],
    other: dict[str, Any] | None,
    other_rows: list[dict[str, Any]],
) -> dict[str, Any] | None:
    """`paired_change` for rows that may be truncated or missing."""
    if not rows or len(rows) != len(other_rows) or entry["metric"] in DRIFT.values():
        return None
    return paired_change(entry, rows, other, other_rows)


def benchmarks(findings: Findings) -> list[dict[str, Any]]:
    """Groups by kind, with a row per benchmark and a cell per model."""
    groups = []
    for kind in KINDS:
        rows = [
            {
                "label": label(name),
                "metric": metric_words(known),
                "better": better_arrow(known),
                "cells": [_cell(findings.results.get(model, {}).get(name)) for model in VARIANTS],
                **_split(change_words(findings, name)),
                "judge": known.get("judge"),
            }
            for name, known in benchmarks_of(findings.results).items()
            if kind_of(known) == kind
        ]
        if rows:
            groups.append({"title": KIND_TITLES[kind], "rows": rows})
    return groups


def _cell(entry: Entry | None, *, metric: bool = False) -> dict[str, str]:
    """A figure and, in small print, its interval and what to know about the answers."""
    if entry is None:
        return {"value": "", "detail": ""}
    details = [metric_words(entry) if metric else "", interval_text(entry), f"n = {entry['n']}"]
    if missing := without_verdict(entry):
        details.append(f"{missing} without verdict")
    if entry.get("looping"):
        details.append(f"{percent(entry['looping'], 0)} looping")
    if entry.get("refusals_ended", 1) < 1:
        details.append(f"{percent(1 - entry['refusals_ended'], 0)} of refusals truncated")
    return {"value": value_text(entry), "detail": ", ".join(filter(None, details))}


def judges(findings: Findings) -> dict[str, Any] | None:
    """The figures of all judges side by side, where there is more than one."""
    entries = [entry for results in findings.results.values() for entry in results.values()]
    names = dict.fromkeys(judge for entry in entries for judge in entry.get("judges") or {})
    if len(names) < 2:
        return None
    rows = []
    for benchmark in benchmarks_of(findings.results):
        for model in VARIANTS:
            entry = findings.results.get(model, {}).get(benchmark)
            if entry is not None and entry.get("judges"):
                rows.append(
                    {
                        "label": label(benchmark),
                        "model": model,
                        "cells": [_cell(judged_by(judge, entry), metric=True) for judge in names],
                        "disagreement": entry.get("disagreement"),
                    }
                )
    return {"names": list(names), "rows": rows}
