"""Candidate directions for report.html: heat maps of their scores, and reasons for rejection."""

from __future__ import annotations

import re
from typing import Any

from safesteer.report import plots
from safesteer.report.findings import Findings
from safesteer.report.words import number, percent

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
    place = f"layer {content['layer']}, strength {content['coefficient']:g}"
    if content.get("position") is not None:
        place += f", position {content['position']}"
    reasons: dict[str, list[dict[str, Any]]] = {}
    for score in content["scores"]:
        if score["rejected"]:
            # One line per kind of reason: its figures differ between candidates.
            reasons.setdefault(re.sub(r"\d[\d.]*", "#", score["rejected"]), []).append(score)
    return {
        "method": content["method"],
        "place": place,
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
    maps = []
    layers = sorted({score["layer"] for score in content["scores"]})
    for method in dict.fromkeys(score["method"] for score in content["scores"]):
        for key, (title, high_is_good) in _SCORES.items():
            of_method = [s for s in content["scores"] if s["method"] == method]
            scores = [s for s in of_method if s[key] is not None]
            by_position = any(s["position"] is not None for s in scores)
            if key == "addition" and not by_position:
                # This score does not depend on the strength: one row.
                scores = list({s["layer"]: {**s, "coefficient": 1.0} for s in scores}.values())
                title = _MARGIN
            if scores:
                if key in ("ablation", "addition", "kl"):
                    # The score that rejects a candidate is the last one computed for it.
                    scores += [s for s in of_method if s["rejected"] and s[key] is None]
                maps.append(
                    {
                        "method": method,
                        "title": title,
                        "better": "higher is better" if high_is_good else "lower is better",
                        **_heat_map(scores, key, high_is_good, by_position, content, layers),
                    }
                )
    return maps


def _heat_map(
    scores: list[dict[str, Any]],
    key: str,
    high_is_good: bool,
    by_position: bool,
    content: dict[str, Any],
    layers: list[int],
) -> dict[str, Any]:
    axis = "position" if by_position else "coefficient"
    rows = sorted({score[axis] for score in scores}, reverse=True)
    values = [score[key] for score in scores if score[key] is not None]
    rates = key in ("flip_rate", "harmless_refusals")
    low, high = (0.0, 1.0) if rates else (min(values), max(values))
    single_row = key == "addition" and not by_position
    cells = []
    for score in scores:
        value = score[key]
        if value is None:
            shade, shown = None, "not scored"
        else:
            share = (value - low) / (high - low) if high > low else 1.0
            shade = share if high_is_good else 1 - share
            shown = percent(value, 0) if rates else number(value)
        chosen = (
            score["method"] == content["method"]
            and score["layer"] == content["layer"]
            and score["position"] == content["position"]
            and (single_row or score["coefficient"] == content["coefficient"])
        )
        text = f"layer {score['layer']}, {_row_name(axis, score[axis])}: {shown}"
        rejected = bool(score["rejected"]) and (not single_row or value is None)
        if rejected:
            text += f"; rejected: {score['rejected']}"
        cells.append(
            plots.Cell(
                score["layer"],
                rows.index(score[axis]),
                shade,
                text + ("; chosen" if chosen else ""),
                rejected=rejected,
                chosen=chosen,
            )
        )
    ends = [percent(v, 0) if rates else number(v) for v in (low, high)]
    return {
        "rows": ["\u00a0" if single_row else _row_name(axis, row) for row in rows],
        "chart": plots.heat_map(cells, layers, len(rows), f"{key} of {len(cells)} candidates"),
        "ends": ends if high_is_good else ends[::-1],
    }


def _row_name(axis: str, value: float) -> str:
    return f"token {value:g}" if axis == "position" else f"\u00d7 {value:g}"
