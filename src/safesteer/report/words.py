"""Figures in words: rates, intervals, durations, sizes, and the names of what was measured.

Everything that shows results (page, card, comparison, terminal) takes its words from here, so that
a figure reads the same everywhere. Imports nothing heavy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

KINDS = ("safety", "over_refusal", "capability")
KIND_TITLES = {"safety": "Safety", "over_refusal": "Over-refusal", "capability": "Capability"}
# Our own prompt sets and the measures of drift; a benchmark goes by its own name.
_LABELS = {
    "harmful": "harmful requests",
    "harmless": "harmless requests",
    "borderline": "borderline requests",
    "agreement": "same next token as the base",
    "divergence": "KL(base ‖ aligned) per token",
}
_METRICS = {
    "refusal_rate": "refused",
    "attack_success_rate": "attacks that succeed",
    "next_token_agreement": "agreement",
    "kl_base_aligned": "nats",
}
# What a browser or terminal would obey instead of show: marks that reorder text, control
# characters, halves of surrogate pairs (which have no UTF-8). Joiners of emoji and Persian stay.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff\ufffe\uffff]"
)


def label(name: str) -> str:
    """What an entry of eval/*.json is called in a sentence."""
    return _LABELS.get(name, name)


def metric_words(metric: str) -> str:
    """What the value of an entry is: `refused`, `accuracy`, ..."""
    return _METRICS.get(metric, metric.replace("_", " "))


def higher_is_better(entry: dict[str, Any]) -> bool:
    """Which way is better: refusals of harmful prompts are, attacks that succeed are not."""
    metric = entry.get("metric", "")
    if metric == "refusal_rate":
        return bool(entry.get("kind") == "safety")
    return not (metric == "attack_success_rate" or metric.startswith("kl"))


def better_words(entry: dict[str, Any]) -> str:
    """`higher is better` or `lower is better`."""
    return f"{'higher' if higher_is_better(entry) else 'lower'} is better"


def is_rate(entry: dict[str, Any]) -> bool:
    """Whether a value is a share of 1, to be shown as a percentage."""
    return not str(entry.get("metric", "")).startswith("kl")


def percent(value: float, digits: int = 1) -> str:
    """0.0667 -> 6.7 %."""
    return f"{100 * value:.{digits}f} %"


def value_text(entry: dict[str, Any]) -> str:
    """The value of an entry with its unit, and the type of passes that were not in float32."""
    if entry.get("value") is None:
        return "no verdict"
    text = percent(entry["value"]) if is_rate(entry) else f"{number(entry['value'])} nats"
    return f"{text} {rounded_words(entry)}".rstrip()


def rounded_words(entry: dict[str, Any]) -> str:
    """`in bfloat16` where drift was measured so: rounding alone takes a point or two of it."""
    dtype = entry.get("dtype") or "float32"
    return "" if dtype == "float32" else f"in {dtype}"


def interval_text(entry: dict[str, Any]) -> str:
    """The 95 % interval of an entry: `3-16`, in percent or nats."""
    bounds = entry.get("ci95")
    if entry.get("value") is None or not bounds or any(bound is None for bound in bounds):
        return ""
    low, high = bounds
    if is_rate(entry):
        return f"{100 * low:.0f}-{100 * high:.0f}"
    return f"{number(low)}-{number(high)}"


def number(value: float | None) -> str:
    """Three significant digits, in plain notation as long as it stays short."""
    if value is None or not math.isfinite(value):
        return ""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
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
    """Bytes with the unit that fits."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def visible(text: str) -> str:
    """`text` with everything that would not show, or would reorder the rest, spelt out."""
    text = text.replace("\r\n", "\n")
    return _UNSEEN.sub(lambda match: f"[U+{ord(match.group()):04X}]", text)


def thinking_words(record: Mapping[str, Any] | None) -> str:
    """What was done about a model's thinking block; "" for a model without one.

    `record` is `safesteer.models.thinking.Thinking.record`, as the manifest has it.
    """
    if record is None:
        return ""
    if record["on"]:
        return "the model thinks before it answers, and only the answer is judged"
    kwargs = ", ".join(f"{key}={value}" for key, value in record["template_kwargs"].items())
    how = [f"template arguments: {kwargs}"] if kwargs else []
    how += [f"appended to the prompt: {record['appended']!r}"] if record["appended"] else []
    if not how:
        return "the template does not ask for it, and nothing is done"
    return f"thinking is off, after an empty block ({'; '.join(how)})"
