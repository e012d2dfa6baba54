"""Insides of the models for report.html: safety tokens, training, rollouts, hidden states."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from safesteer.inference import VARIANTS
from safesteer.report import charts, plots
from safesteer.report.findings import Findings
from safesteer.report.words import duration, number, percent

TOP_TOKENS = 20
TABLE_ROWS = 24
_REFERENCES = {"teacher": "the teacher", "base": "the base"}


def tokens(findings: Findings) -> dict[str, Any] | None:
    """The safety tokens S with their probability under each model, if it was measured."""
    content = findings.tokens
    if content is None:
        return None
    measured = (findings.measurements or {}).get("tokens")
    if measured and measured["ids"] != [token["id"] for token in content["tokens"]]:
        measured = None
    rows = [_token_row(index, token, measured) for index, token in enumerate(content["tokens"])]
    top, rest = rows[:TOP_TOKENS], rows[TOP_TOKENS:]
    low, high = _powers([p for row in top for _, p in row["known"]])
    for row in top:
        row["strip"] = charts.log_strip(row["known"], (low, high), row["text_of_p"])
    mass = measured["mass"] if measured else {}
    return {
        "rows": top,
        "rest": rest,
        "count": len(rows),
        "scale": (f"{100 * 10.0**low:g}%", f"{100 * 10.0**high:g}%"),
        "method": content["method"],
        "coverage": content["coverage"],
        "positions": content["positions"],
        "set": content["prompts"],
        "measured": measured,
        "mass": [(model, mass[model]) for model in VARIANTS if model in mass],
    }


def _token_row(
    index: int, token: dict[str, Any], measured: dict[str, Any] | None
) -> dict[str, Any]:
    known = {"base": token["p_base"], "teacher": token["p_teacher"]}
    if measured:
        known = {model: measured["p"][model][index] for model in VARIANTS}
    shown = {model: f"{number(100 * value)}%" for model, value in known.items()}
    return {
        "text": _token_text(token["text"]),
        "votes": token["votes"],
        "mass": token["mass"],
        "p": [shown.get(model, "") for model in VARIANTS],
        "known": list(known.items()),
        "text_of_p": ", ".join(f"{model} {text}" for model, text in shown.items()),
    }


def _powers(values: list[float]) -> tuple[int, int]:
    """The powers of ten around probabilities, at least one apart."""
    seen = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(seen))), min(0, math.ceil(math.log10(max(seen))))
    return low, max(high, low + 1)


def _token_text(text: str) -> str:
    """A token's text with line breaks, and spaces at its ends, made visible."""
    shown = text.replace("\n", "↵").replace("\t", "⇥")
    return re.sub(r"^ +| +$", lambda spaces: "␣" * len(spaces.group()), shown)


_CURVES: tuple[tuple[str, bool, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", False, (("loss", ""),)),
    ("Probability mass on S, harmful prompts", True,
     (("mass_student", "student"), ("mass_teacher", "teacher"))),
    ("Refused rollouts", True,
     (("refusal_rate", "harmful"), ("anchor_refusal_rate", "anchors"))),
    ("Refused rollouts, wrongly refused prompts", True, (("repaired_refusal_rate", ""),)),
    ("Gradient norm", False, (("grad_norm", ""),)),
    ("Student entropy, nats", False, (("entropy", ""),)),
    ("Rollout length, tokens", False, (("completion_length", ""),)),
    ("Tokens per second", False, (("tokens_per_second", ""),)),
    ("Seconds per step", False, (("step_seconds", ""),)),
    ("Learning rate", False, (("lr", ""),)),
)  # fmt: skip


def training(findings: Findings) -> dict[str, Any] | None:
    """A chart per measure of train/metrics.jsonl, and a table of some steps."""
    if not findings.steps:
        return None
    steps = [
        {**step, "step_seconds": sum((step.get("seconds") or {}).values()) or None}
        for step in findings.steps
    ]
    every = max(1, -(-len(steps) // TABLE_ROWS))
    shown = [step for i, step in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
    keys = [key for _, _, series in _CURVES for key, _ in series]
    keys = [key for key in keys if any(step.get(key) is not None for step in steps)]
    seconds: Counter[str] = Counter()
    for step in steps:
        seconds.update(step.get("seconds") or {})
    return {
        "curves": _curves(steps),
        "columns": keys,
        "table": [[s["step"], *(number(_finite(s.get(key))) for key in keys)] for s in shown],
        "every": every,
        "seconds": [(name, duration(value)) for name, value in seconds.most_common()],
    }


def _curves(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    xs = [step["step"] for step in steps]
    drawn = []
    for title, share, series in _CURVES:
        found = [
            plots.Line(name, style, [_finite(step.get(key)) for step in steps])
            for (key, name), style in zip(series, ("one", "two"), strict=False)
            if any(_finite(step.get(key)) is not None for step in steps)
        ]
        if found:
            first = [y for y in found[0].ys if y is not None]
            name = f"{title} over {len(xs)} steps, from {number(first[0])} to {number(first[-1])}"
            drawn.append(
                {
                    "title": title,
                    "legend": [(line.style, line.name) for line in found if line.name],
                    "chart": plots.lines(xs, found, name, share, smooth=title != "Learning rate"),
                }
            )
    return drawn


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None


def rollouts(findings: Findings) -> dict[str, Any] | None:
    """Rollouts token by token; harmful prompts are separate, to stand behind a warning."""
    content = (findings.measurements or {}).get("rollouts")
    if not content:
        return None
    values = sorted(kl for rollout in content for kl in rollout["kl"])
    # Colors reach full strength at the 98th percentile, so that one outlier cannot pale the rest.
    full = max(0.05, values[int(0.98 * (len(values) - 1))]) if values else 1.0
    groups: dict[str, list[dict[str, Any]]] = {"harmful": [], "other": []}
    kls: dict[tuple[str, str, str], list[float]] = {}
    for rollout in content:
        reference = _REFERENCES[rollout["reference"]]
        tokens = []
        for text, kl, p, other in zip(
            rollout["tokens"], rollout["kl"], rollout["p"], rollout["p_reference"], strict=True
        ):
            shade = min(1.0, (kl / full) ** 0.5)  # square root: small values stay visible
            tokens.append(
                {
                    "text": text.replace("\n", "↵\n") or "▏",
                    "shade": f"{0.85 * shade:.2f}",
                    "high": kl >= full / 2,
                    "tip": f"KL on S {number(kl)} nats; probability of this token {number(p)},"
                    f" under {reference} {number(other)}",
                }
            )
        row = {**rollout, "words": tokens, "against": reference, "mean": _mean(rollout["kl"])}
        groups["harmful" if rollout["set"] == "harmful" else "other"].append(row)
        kind = (rollout["set"], rollout["variant"], reference)
        kls.setdefault(kind, []).extend(rollout["kl"])
    return {
        **groups,
        "full": full,
        "means": [(*kind, _mean(values)) for kind, values in kls.items()],
        "top": _top_tokens(content),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def _top_tokens(content: list[dict[str, Any]], count: int = 12) -> list[dict[str, Any]]:
    """The positions with the largest divergence, without text: an answer may be harmful."""
    rows = [
        {"set": rollout["set"], "variant": rollout["variant"], "position": position}
        | {"kl": kl, "p": p, "p_reference": other}
        for rollout in content
        for position, (kl, p, other) in enumerate(
            zip(rollout["kl"], rollout["p"], rollout["p_reference"], strict=True), start=1
        )
    ]
    return sorted(rows, key=lambda row: -row["kl"])[:count]


def states(findings: Findings) -> list[dict[str, Any]]:
    """Two scatter plots per layer, of harmful and harmless prompts, on one scale."""
    panels = []
    for panel in (findings.measurements or {}).get("states") or []:
        points = panel["points"]
        every = [xy for by_set in points.values() for found in by_set.values() for xy in found]
        bounds = (*_range([x for x, _ in every]), *_range([y for _, y in every]))
        drawn = []
        for set_name in points["base"]:
            marks: list[plots.Point] = []
            means: dict[str, tuple[float, float]] = {}
            for model in VARIANTS:
                found = points[model][set_name]
                x, y = (_mean([xy[axis] for xy in found]) for axis in (0, 1))
                means[model] = (x, y)
                marks += [plots.Point(model, *xy) for xy in found]
                marks.append(plots.Point(model, x, y, f"mean, {model}", strong=True))
            arrows = [(m, means["base"], means[m]) for m in ("teacher", "aligned")]
            shift = panel["shift"][set_name]
            words = (
                f"the aligned model's mean moved {percent(shift['shift'], 0)} of the way to the"
                f" teacher's (cosine {shift['cosine']:.2f})"
            )
            title = f"{set_name} prompts"
            drawn.append(
                {
                    "title": title,
                    "chart": plots.scatter(marks, bounds, f"{title}: {words}", arrows),
                    "words": words,
                    "count": len(points["base"][set_name]),
                }
            )
        where = (
            f"input of layer {panel['layer']}, where the teacher is steered"
            if panel["place"] == "layer"
            else f"output of the last of {panel['layer']} layers"
        )
        panels.append({"title": where, "plots": drawn, "explained": panel["explained"]})
    return panels


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room
