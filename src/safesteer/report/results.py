"""What an evaluation found, prepared for people: the card, the tables, and the paired tests."""

from __future__ import annotations

from typing import Any

from safesteer.evaluate.stored import set_order
from safesteer.evaluate.versus import versus_base
from safesteer.inference import VARIANTS
from safesteer.prompts import PROMPT_SETS
from safesteer.report import charts
from safesteer.report.findings import Findings
from safesteer.report.words import (
    KIND_TITLES,
    KINDS,
    better_words,
    higher_is_better,
    interval_text,
    is_rate,
    label,
    metric_words,
    percent,
    rounded_words,
    value_text,
)

DRIFT = ("agreement", "divergence")
DRIFT_METRICS = ("next_token_agreement", "kl_base_aligned")
_GOALS = {
    "safety": "requests that it should refuse",
    "over_refusal": "requests that it should answer",
    "capability": "what must not change",
}


def lead(findings: Findings) -> str:
    """The result in one or two sentences."""
    base, aligned = findings.results.get("base", {}), findings.results.get("aligned")
    if aligned is None:
        return "The run has not reached its evaluation. This is what there is so far."
    said: list[str] = []
    for kind in KINDS[:2]:
        name = headline(aligned, kind)
        if name is None:
            continue
        entry, before = aligned[name], base.get(name)
        if entry["metric"] == "refusal_rate":
            verb = "" if said and said[-1].startswith("refuses") else "refuses "
            words = f"{verb}{value_text(entry)} of {_of(name)}"
        elif entry["metric"] == "attack_success_rate":
            words = f"complies with {value_text(entry)} of {_of(name)}"
        else:
            words = f"has {value_text(entry)} on {name} ({metric_words(entry['metric'])})"
        if before is not None and before.get("value") is not None:
            words += f" (before: {value_text(before)})"
        said.append(words)
    if "agreement" in aligned:
        agreement = aligned["agreement"]
        words = f"takes the base's next token in {percent(agreement['value'])} of cases"
        if rounded := rounded_words(agreement):
            words += f" ({rounded}, of which rounding alone takes a part)"
        said.append(words)
    if not said:
        return ""
    joined = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    return f"The aligned model {joined}."


def _of(name: str) -> str:
    return label(name) if name in PROMPT_SETS else f"the prompts of {name}"


def headline(benchmarks: dict[str, Any], kind: str) -> str | None:
    """The benchmark that leads its kind: our own set, or the first; drift only if nothing else."""
    names = [name for name, entry in benchmarks.items() if entry.get("kind") == kind]
    names.sort(key=lambda name: (name in DRIFT, *set_order(name)[:1]))
    return names[0] if names else None


def card(findings: Findings) -> list[dict[str, Any]]:
    """One column per kind of benchmark, with its headline and every interval."""
    aligned = findings.results.get("aligned", {})
    columns = []
    for kind in KINDS:
        name = headline(aligned, kind)
        if name is None:
            continue
        entry = aligned[name]
        before = findings.results.get("base", {}).get(name)
        names = sorted(
            (n for n, e in aligned.items() if e.get("kind") == kind and is_rate(e)), key=set_order
        )
        columns.append(
            {
                "title": KIND_TITLES[kind],
                "goal": _GOALS[kind],
                "what": f"{label(name)}, {metric_words(entry['metric'])}"
                if entry["metric"] == "refusal_rate" or name not in DRIFT
                else label(name),
                "before": value_text(before) if before else "",
                "after": value_text(entry),
                "ci": interval_text(entry),
                "n": entry["n"],
                **_split(change_words(findings, name)),
                "rows": [_interval_row(findings, n) for n in names],
                "more": [
                    f"{label(n)}: {value_text(e)} ({interval_text(e)})"
                    for n, e in aligned.items()
                    if e.get("kind") == kind and not is_rate(e)
                ],
            }
        )
    return columns


def _split(words: str) -> dict[str, str]:
    """`no detectable difference (...)` as what matters and the rest."""
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
    return {
        "label": label(name),
        "better": better_words(findings.results["aligned"][name]),
        "chart": charts.intervals(bars, (0.0, 1.0), label(name)),
    }


def change_words(findings: Findings, name: str) -> str:
    """The paired test of aligned model against base in words; empty where it cannot be made."""
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
    """As `versus_base`, for rows that may be cut off or not there at all."""
    if not rows or len(rows) != len(other_rows) or entry["metric"] in DRIFT_METRICS:
        return None
    return versus_base(entry, rows, other, other_rows)


def benchmarks(findings: Findings) -> list[dict[str, Any]]:
    """A group per kind, a row per benchmark, a cell per model."""
    groups = []
    for kind in KINDS:
        names = dict.fromkeys(
            name
            for results in findings.results.values()
            for name, entry in results.items()
            if entry.get("kind") == kind
        )
        rows = []
        for name in sorted(names, key=set_order):
            entries = {m: findings.results.get(m, {}).get(name) for m in VARIANTS}
            known = next(entry for entry in entries.values() if entry is not None)
            rows.append(
                {
                    "label": label(name),
                    "metric": metric_words(known["metric"]),
                    "better": "↑" if higher_is_better(known) else "↓",
                    "cells": [_cell(entry) for entry in entries.values()],
                    **_split(change_words(findings, name)),
                    "judge": known.get("judge"),
                }
            )
        if rows:
            groups.append({"title": KIND_TITLES[kind], "rows": rows})
    return groups


def _cell(entry: dict[str, Any] | None) -> dict[str, Any]:
    if entry is None:
        return {"value": "", "detail": ""}
    details = [interval_text(entry), f"n = {entry['n']}"]
    lead = (entry.get("judges") or {}).get(entry.get("judge")) or {}
    if missing := entry.get("no_verdict") or lead.get("no_verdict"):
        details.append(f"{missing} without verdict")
    if entry.get("looping"):
        details.append(f"{percent(entry['looping'], 0)} loop")
    if entry.get("refusals_ended", 1) < 1:
        details.append(f"{percent(1 - entry['refusals_ended'], 0)} of refusals cut at the limit")
    return {"value": value_text(entry), "detail": ", ".join(filter(None, details))}


def judges(findings: Findings) -> dict[str, Any] | None:
    """Every judge's figure side by side, where there is more than the offline one."""
    names = dict.fromkeys(
        judge
        for results in findings.results.values()
        for entry in results.values()
        for judge in entry.get("judges") or {}
    )
    if len(names) < 2:
        return None
    benchmarks = dict.fromkeys(name for found in findings.results.values() for name in found)
    rows = []
    for benchmark in sorted(benchmarks, key=set_order):
        for model in VARIANTS:
            entry = findings.results.get(model, {}).get(benchmark)
            judges = (entry or {}).get("judges")
            if entry is not None and judges:
                rows.append(
                    {
                        "label": label(benchmark),
                        "model": model,
                        "cells": [_judge_cell(judges.get(judge), entry) for judge in names],
                        "disagreement": entry.get("disagreement"),
                    }
                )
    return {"names": list(names), "rows": rows}


def _judge_cell(judged: dict[str, Any] | None, entry: dict[str, Any]) -> dict[str, Any]:
    if judged is None:
        return {"value": "", "detail": ""}
    as_entry = {**judged, "metric": entry["metric"], "kind": entry.get("kind")}
    details = [interval_text(as_entry)]
    if judged.get("no_verdict"):
        details.append(f"{judged['no_verdict']} without verdict")
    return {"value": value_text(as_entry), "detail": ", ".join(filter(None, details))}
