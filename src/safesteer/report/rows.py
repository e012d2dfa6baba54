"""Results as rows of words for the terminal's tables; the first cell names the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safesteer.evaluate.metrics import DRIFT
from safesteer.prompts import PROMPT_SETS
from safesteer.report.words import (
    benchmarks_of,
    better_words,
    figure,
    judged_by,
    label,
    metric_words,
    percent,
    title,
    value_text,
)

Entries = Mapping[str, dict[str, Any]]  # {benchmark: entry of eval/MODEL.json}


def result_rows(results: Mapping[str, Entries]) -> list[list[str]]:
    """Every figure of one or more models, a column for each.

    Benchmarks by kind, each with all its judges; then shares of all answers to our own prompt sets,
    and drift.
    """
    rows, drift = [], []
    for name, known in benchmarks_of(results).items():
        found = [entries.get(name) for entries in results.values()]
        row_name = f"{title(name, known)} ({better_words(known)})"
        if name in DRIFT:
            drift.append([row_name, *("" if e is None else value_text(e) for e in found)])
        else:
            rows.append([row_name, *map(figure, found)])
            rows += _judge_rows(found)
    for text, share, of in (
        ("looping answers", "looping", "n"),
        ("refusals that end within the token limit", "refusals_ended", "refusals"),
    ):
        rows.append([text, *(_overall(entries, share, of) for entries in results.values())])
    return [row for row in rows + drift if any(row[1:])]


def change_rows(results: Mapping[str, Entries]) -> list[list[str]]:
    """The paired tests against the base: what changed, and by how much."""
    return [
        [
            label(name) if len(results) == 1 or model == "aligned" else f"{model}, {label(name)}",
            entry["versus_base"]["words"],
        ]
        for model, entries in results.items()
        for name, entry in entries.items()
        if "versus_base" in entry
    ]


def result_lines(model: str, entries: Entries) -> list[str]:
    """The figures of one model, our own prompt sets in one line."""
    own = [
        f"{value_text(entry)} of {label(name)}"
        for name, entry in entries.items()
        if name in PROMPT_SETS and entry["value"] is not None
    ]
    lines = [f"{model} refused: {', '.join(own)}"] if own else []
    return lines + [
        f"{model}, {title(name, entry)}: {figure(entry)}"
        for name, entry in entries.items()
        if name not in (*PROMPT_SETS, *DRIFT)
    ]


def repair_lines(content: Mapping[str, Any]) -> list[str]:
    """The content of repairs/repairs.json: what the base wrongly refuses, and what is done."""
    asked, repaired, doubted, left_out = (
        sum(each if isinstance(each, int) else len(each) for each in content[key].values())
        for key in ("asked", "repaired", "doubted", "left_out")
    )
    wrong = repaired + content["surplus"]
    if not wrong:
        lines = [
            f"The base wrongly refuses none of {asked} harmless training prompts: there is nothing"
            " to repair, and training holds the model to the base on all of them."
        ]
    else:
        lines = [
            f"The base wrongly refuses {wrong} of {asked} harmless training prompts, and training"
            f" {'repairs these' if repaired == wrong else f'repairs {repaired} of them'}."
        ]
    for name, ids in content["repaired"].items():
        if ids:
            kinds = sorted(content["categories"][name].items(), key=lambda kind: -kind[1])
            words = ", ".join(f"{kind or 'no category'} {count}" for kind, count in kinds)
            lines.append(f"{name}: {len(ids)} of {content['asked'][name]} ({words}).")
    for count, words in (
        (content["surplus"], "wrong refusals stay: no more are repaired than the training has"
         " harmful prompts."),
        (doubted, "refused prompts keep their refusal: a probe on the base's activations takes them"
         " for harmful."),
        (left_out, "prompts are left out of training: a harmful set nearly holds them."),
    ):  # fmt: skip
        if count:
            lines.append(f"{count} {words}")
    return lines


def sides_line(results: Mapping[str, Entries]) -> str:
    """Both sides in one line: `harmful 44% -> 91%, harmless 9% -> 8%`; empty without figures."""
    base, aligned = results.get("base", {}), results.get("aligned", {})
    parts = [
        f"{name} {percent(base[name]['value'], 0)} -> {percent(aligned[name]['value'], 0)}"
        for name in PROMPT_SETS
        if all(side.get(name, {}).get("value") is not None for side in (base, aligned))
    ]
    return f"refused, base -> aligned: {', '.join(parts)}" if parts else ""


def step_words(metrics: Mapping[str, Any]) -> str:
    """One training step in a few words; `metrics` is its line of train/metrics.jsonl."""
    parts = [f"loss {metrics['loss']:.4f}"]
    for key, text in (
        ("refusal_rate", "refused"),
        ("anchor_refusal_rate", "anchors refused"),
        ("repaired_refusal_rate", "repaired ones refused"),
    ):
        if metrics.get(key) is not None:
            parts.append(f"{text} {percent(metrics[key], 0)}")
    if metrics.get("unfinished"):
        parts.append(f"without an answer {percent(metrics['unfinished'], 0)}")
    if metrics.get("mass_student") is not None:
        parts.append(f"p(S) {metrics['mass_student']:.2f} (teacher {metrics['mass_teacher']:.2f})")
    return "  ".join(parts)


def _judge_rows(entries: Sequence[dict[str, Any] | None]) -> list[list[str]]:
    """What each other judge counts, and on how many answers the judges disagree."""
    found = [entry for entry in entries if entry is not None and len(entry.get("judges", {})) > 1]
    names = dict.fromkeys(judge for entry in found for judge in entry["judges"])
    leading = {entry["judge"] for entry in found}
    rows = []
    for name in names:
        if {name} != leading:
            judged = [judged_by(name, entry) for entry in entries]
            known = next(entry for entry in judged if entry)
            rows.append([f"  {name}: {metric_words(known)}", *map(figure, judged)])
    if any(entry.get("disagreement") is not None for entry in found):
        shares = [(entry or {}).get("disagreement") for entry in entries]
        cells = ["" if share is None else percent(share) for share in shares]
        rows.append(["  judges disagree", *cells])
    return rows


def _overall(entries: Entries, share: str, of: str) -> str:
    """The `share` of what is counted under `of`, over our own prompt sets together."""
    own = [entry for name, entry in entries.items() if name in PROMPT_SETS and share in entry]
    count = sum(entry[of] for entry in own)
    return percent(sum(e[share] * e[of] for e in own) / count) if count else ""
