"""Candidate directions for report.html: heat maps of their scores, and reasons for rejection."""

from __future__ import annotations

import re
from typing import Any

from safesteer.report import plots
from safesteer.report.findings import Findings
from safesteer.report.words import number, percent, place_words

# {score: (title, whether higher is better)}
_SCORES = {
    "ablation": ("refusal score of harmful prompts, direction ablated", False),
    "addition": ("refusal score of harmless prompts, direction added", True),
    "kl": ("KL(base ‖ direction ablated) on harmless prompts", False),
    "flip_rate": ("harmful prompts refused by the steered model", True),
    "harmless_refusals": ("harmless prompts refused by the steered model", False),
    "perplexity_ratio": ("perplexity of the steered model's answers, relative to the base", False),
}
_MARGIN = "log-probability of refusing minus complying openings on harmful prompts, nats per token"


def direction(findings: Findings) -> dict[str, Any] | None:
    """The chosen direction, a heat map per score, and the reasons for rejection."""
    content = findings.direction
    if content is None:
        return None
    reasons: dict[str, list[dict[str, Any]]] = {}
    for score in content["scores"]:
        if score["rejected"]:
            # One line per kind of reason: its figures differ between candidates.
            reasons.setdefault(re.sub(r"\d[\d.]*", "#", score["rejected"]), []).append(score)
    return {
        "method": content["method"],
        "place": place_words(content),
        "norm": content["norm"],
        "qualified": content["qualified"],
        "notes": content["notes"],
        "maps": _heat_maps(content),
        "candidates": len(content["scores"]),
        "reasons": [
            {
                "count": len(scores),
                "example": scores[0]["rejected"],
                "layers": ", ".join(map(str, sorted({score["layer"] for score in scores}))),
            }
            for scores in sorted(reasons.values(), key=len, reverse=True)
        ],
        "scores": content["scores"],
        "columns": [key for key in _SCORES if any(s[key] is not None for s in content["scores"])],
    }


def _heat_maps(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A map per source and score: layers by positions, or layers by strengths."""
    layers = sorted({score["layer"] for score in content["scores"]})
    maps = []
    for method in dict.fromkeys(score["method"] for score in content["scores"]):
        of_method = [score for score in content["scores"] if score["method"] == method]
        for key in _SCORES:
            drawn = _heat_map(key, of_method, content, layers)
            if drawn is not None:
                maps.append({"method": method, **drawn})
    return maps


def _heat_map(
    key: str, of_method: list[dict[str, Any]], content: dict[str, Any], layers: list[int]
) -> dict[str, Any] | None:
    """The map of one score; None where no candidate has it."""
    title, high_is_good = _SCORES[key]
    scores = [score for score in of_method if score[key] is not None]
    if not scores:
        return None
    by_position = any(score["position"] is not None for score in scores)
    single_row = key == "addition" and not by_position
    if single_row:  # this score does not depend on the strength
        scores = list({s["layer"]: {**s, "coefficient": 1.0} for s in scores}.values())
        title = _MARGIN
    rates = key in ("flip_rate", "harmless_refusals")
    values = [score[key] for score in scores]
    low, high = (0.0, 1.0) if rates else (min(values), max(values))
    if key in ("ablation", "addition", "kl"):
        # Candidates that were rejected before this score was computed.
        scores += [score for score in of_method if score["rejected"] and score[key] is None]

    axis = "position" if by_position else "coefficient"
    rows = sorted({score[axis] for score in scores}, reverse=True)
    cells = []
    for score in scores:
        value, shade, shown = score[key], None, "not scored"
        if value is not None:
            share = (value - low) / (high - low) if high > low else 1.0
            shade = share if high_is_good else 1 - share
            shown = percent(value, 0) if rates else number(value)
        place = ("method", "layer", "position", *(() if single_row else ("coefficient",)))
        chosen = all(score[name] == content[name] for name in place)
        rejected = bool(score["rejected"]) and (not single_row or value is None)
        text = f"layer {score['layer']}, {_row_name(axis, score[axis])}: {shown}"
        text += f"; rejected: {score['rejected']}" if rejected else ""
        text += "; chosen" if chosen else ""
        row = rows.index(score[axis])
        cells.append(plots.Cell(score["layer"], row, shade, text, rejected, chosen))
    ends = [percent(end, 0) if rates else number(end) for end in (low, high)]
    return {
        "title": title,
        "better": "higher is better" if high_is_good else "lower is better",
        "rows": ["\u00a0" if single_row else _row_name(axis, row) for row in rows],
        "chart": plots.heat_map(cells, layers, len(rows), f"{title}: {len(cells)} candidates"),
        "ends": ends if high_is_good else ends[::-1],
    }


def _row_name(axis: str, value: float) -> str:
    return f"token {value:g}" if axis == "position" else f"\u00d7 {value:g}"
