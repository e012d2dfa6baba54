"""Maps of candidates that were rejected before all their scores were computed."""

from __future__ import annotations

import re
from types import SimpleNamespace

import torch

from safesteer.direction.candidates import Candidate
from safesteer.direction.extract import DirectionResult
from safesteer.direction.vector import Direction
from safesteer.report.direction_map import _SCORES as SCORES
from safesteer.report.direction_map import direction


def made(layer: int, **scores: object) -> Candidate:
    return Candidate(Direction(torch.ones(4), layer, 1.0, "harmful-harmless", -1), **scores)


def test_a_score_that_was_not_made_is_shown_as_such():
    """Null in direction.json; in every map a cell without color that says why."""
    chosen = made(1, addition=2.0, kl=0.01, ablation=-3.0)
    weak = made(2, addition=-1.5, rejected="adding it does not induce refusal")
    wild = made(3, addition=1.0, kl=0.7, rejected="ablating it changes harmless answers")
    late = made(4, rejected="among the last 20% of layers")
    content = DirectionResult(chosen.direction, [chosen, weak, wild, late], True).to_json()
    missing = [
        [s[key] is None for key in ("addition", "kl", "ablation")] for s in content["scores"]
    ]
    assert missing == [[False] * 3, [False, True, True], [False, False, True], [True] * 3]
    maps = direction(SimpleNamespace(direction=content))["maps"]
    assert all(f"{m['title']}: 4 candidates" in str(m["chart"]) for m in maps)
    cells = {
        m["title"]: re.findall(r"<title>([^<]*)</title>.*?fill-opacity:([0-9.]+)", str(m["chart"]))
        for m in maps
    }
    for key, scored in (("addition", {1, 2, 3}), ("kl", {1, 3}), ("ablation", {1})):
        of_score = cells[SCORES[key][0]]
        assert len(of_score) == 4
        for text, depth in of_score:
            layer = int(re.match(r"layer (\d)", text)[1])
            assert ("not scored; rejected: " in text) == (layer not in scored)
            assert (float(depth) == 0) == (layer not in scored)
