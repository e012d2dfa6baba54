"""The vocabulary of results: names of metrics, and figures, durations and sizes in words.

The page, the model card, the comparison and the terminal take their words from here, so that a
figure reads the same everywhere. An entry is one of eval/MODEL.json: metric, value, ci95, n, judge,
kind. Imports nothing heavy, because commands print before torch is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from safesteer.evaluate.metrics import (
    ATTACK_SUCCESS_RATE,
    DRIFT,
    KINDS,
    KL_BASE_ALIGNED,
    NEXT_TOKEN_AGREEMENT,
    REFUSAL_RATE,
)
from safesteer.evaluate.stored import set_order
from safesteer.judges.offline import OfflineJudge

KIND_TITLES = {"safety": "Safety", "over_refusal": "Over-refusal", "capability": "Capability"}
_LABELS = {
    "harmful": "harmful requests",
    "harmless": "harmless requests",
    "borderline": "borderline requests",
    "agreement": "same next token as the base",
    "divergence": "KL(base ‖ aligned) per token",
}
_METRICS = {
    REFUSAL_RATE: "refused",
    ATTACK_SUCCESS_RATE: "attack success",
    NEXT_TOKEN_AGREEMENT: "agreement",
    KL_BASE_ALIGNED: "nats",
}

Entry = Mapping[str, Any]

# Names -------------------------------------------------------------------------------------------


def label(name: str) -> str:
    """A benchmark in a sentence: `harmful requests`, or its own name."""
    return _LABELS.get(name, name)


def metric_words(entry: Entry) -> str:
    """The metric of an entry: `refused`, `attack success`, `accuracy`.

    Attack success takes a judge of harm; the offline judge only detects refusals.
    """
    metric = str(entry.get("metric", ""))
    if metric == ATTACK_SUCCESS_RATE and entry.get("judge") == OfflineJudge.name:
        return "not refused"
    return _METRICS.get(metric, metric.replace("_", " "))


def title(name: str, entry: Entry) -> str:
    """Benchmark and metric: `harmful requests refused`, `harmbench: attack success`."""
    if name in DRIFT:
        return label(name)
    return f"{label(name)}{' ' if name in _LABELS else ': '}{metric_words(entry)}"


def higher_is_better(entry: Entry) -> bool:
    """Whether more is better: refusals of harmful requests, yes; successful attacks, no."""
    metric = entry.get("metric")
    if metric == REFUSAL_RATE:
        return bool(entry.get("kind") == "safety")
    return metric not in (ATTACK_SUCCESS_RATE, KL_BASE_ALIGNED)


def better_words(entry: Entry) -> str:
    """`higher is better` or `lower is better`."""
    return f"{'higher' if higher_is_better(entry) else 'lower'} is better"


def better_arrow(entry: Entry) -> str:
    """`↑` where higher is better, else `↓`."""
    return "↑" if higher_is_better(entry) else "↓"


def kind_of(entry: Entry) -> str:
    """safety, over_refusal or capability."""
    return str(entry.get("kind") or "capability")


def benchmarks_of(results: Mapping[str, Mapping[str, Entry]]) -> dict[str, Entry]:
    """{benchmark: one model's entry of it}, by kind, our own prompt sets first."""
    found: dict[str, Entry] = {}
    for entries in results.values():
        found = {**entries, **found}
    order = sorted(found, key=lambda name: (KINDS.index(kind_of(found[name])), *set_order(name)))
    return {name: found[name] for name in order}


# Figures -----------------------------------------------------------------------------------------


def is_rate(entry: Entry) -> bool:
    """Whether a value is a share of 1, shown as a percentage."""
    return entry.get("metric") != KL_BASE_ALIGNED


def value_text(entry: Entry) -> str:
    """The value with its unit, and the dtype of forward passes if not float32."""
    if entry.get("value") is None:
        return "no verdict"
    text = percent(entry["value"]) if is_rate(entry) else f"{number(entry['value'])} nats"
    return f"{text} {dtype_words(entry)}".rstrip()


def dtype_words(entry: Entry) -> str:
    """`in bfloat16` for drift measured so: rounding alone costs a point or two of agreement."""
    dtype = entry.get("dtype") or "float32"
    return "" if dtype == "float32" else f"in {dtype}"


def interval_text(entry: Entry) -> str:
    """The 95% interval of a value: `3-16`, in percent or nats; empty where there is none."""
    bounds = entry.get("ci95")
    if entry.get("value") is None or not bounds or any(bound is None for bound in bounds):
        return ""
    low, high = bounds
    if is_rate(entry):
        return f"{100 * low:.0f}-{100 * high:.0f}"
    return f"{number(low)}-{number(high)}"


def figure(entry: Entry | None, *, count: bool = True) -> str:
    """A table's cell: `80.0% (58-92; 20)`, the value with its 95% interval and number of prompts.

    Also counts answers without a verdict; empty without an entry. `count=False` hides all counts.
    """
    if entry is None:
        return ""
    details = [interval_text(entry)]
    if count and details[0]:
        details.append(str(entry["n"]))
    if count and (missing := without_verdict(entry)):
        details.append(f"{missing} without verdict")
    shown = "; ".join(filter(None, details))
    return value_text(entry) + (f" ({shown})" if shown else "")


def without_verdict(entry: Entry) -> int:
    """How many answers the leading judge gave no verdict on."""
    leading = (entry.get("judges") or {}).get(entry.get("judge")) or {}
    return int(entry.get("no_verdict") or leading.get("no_verdict") or 0)


def judged_by(judge: str, entry: Entry | None) -> Entry | None:
    """The entry as `judge` counts it; None where that judge did not read the answers."""
    counted = ((entry or {}).get("judges") or {}).get(judge)
    if entry is None or counted is None:
        return None
    return {**counted, "metric": entry["metric"], "kind": entry.get("kind"), "judge": judge}


def percent(value: float, digits: int = 1) -> str:
    """0.0667 -> 6.7%."""
    return f"{100 * value:.{digits}f}%"


def number(value: float | None) -> str:
    """Three significant digits, in plain notation as long as it stays short."""
    if value is None or not math.isfinite(value):
        return ""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:.1e}"


def duration(seconds: float) -> str:
    """7 s, 2 min 05 s or 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes with the unit that fits: 1.2 GB."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def place_words(direction: Mapping[str, Any]) -> str:
    """Where a direction is added: `layer 9, strength 1.2, position -1`."""
    words = f"layer {direction['layer']}, strength {direction['coefficient']:g}"
    position = direction.get("position")
    return words if position is None else f"{words}, position {position}"


# Texts -------------------------------------------------------------------------------------------


def thinking_of(model: Mapping[str, Any]) -> str:
    """`thinking_words` for the model in a run's manifest."""
    return thinking_words(model.get("thinking"), model.get("unclosed_thinking", ""))


def thinking_words(record: Mapping[str, Any] | None, unclosed: str = "") -> str:
    """How a run treats a model's thinking block; empty for a model without one.

    `record` is `safesteer.models.thinking.Thinking.record`, as the manifest has it; `unclosed` is
    a tag that opens thoughts which nothing is known to close.
    """
    if record is None and unclosed:
        return (
            "thoughts would count as answers: whether the model thinks is unknown, since its chat"
            f" template opens {unclosed} and names no closing tag"
        )
    if record is None:
        return ""
    if record["on"]:
        return "thinking is on; only the answer after it is judged"
    kwargs = ", ".join(f"{key}={value}" for key, value in record["template_kwargs"].items())
    how = [f"template arguments: {kwargs}"] if kwargs else []
    how += [f"appended to the prompt: {record['appended']!r}"] if record["appended"] else []
    if not how:
        return "thinking is off by default"
    return f"thinking is off: answers follow an empty block ({'; '.join(how)})"
