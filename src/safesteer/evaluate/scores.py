"""Scores of a model on the questions of a capability benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safesteer.evaluate.statistics import mean_interval, wilson_interval


@dataclass(frozen=True)
class Score:
    """The mean score: 1 for a right answer or a win, 0 for a wrong one or a loss.

    The rows of `samples` have the keys id, category, prompt, completion and score. A score of None
    is not counted.
    """

    name: str  # of the benchmark
    metric: str
    samples: list[dict[str, Any]]
    source: Mapping[str, Any]
    judge: str | None = None  # the model that scored, if any
    details: Mapping[str, Any] = field(default_factory=dict)  # more keys, as lm-eval's version

    def to_json(self) -> dict[str, Any]:
        """An entry of eval/MODEL.json."""
        scores = [float(row["score"]) for row in self.samples if row["score"] is not None]
        right, wrong = scores.count(1), scores.count(0)
        binary = right + wrong == len(scores)
        interval = (
            wilson_interval(right, len(scores)) if binary else mean_interval(scores, share=True)
        )
        entry = {
            "metric": self.metric,
            "value": sum(scores) / len(scores) if scores else None,
            "ci95": list(interval),
            "n": len(scores),
            "judge": self.judge,
            "kind": "capability",
            "source": dict(self.source),
            **self.details,
        }
        if missing := len(self.samples) - len(scores):
            entry["no_verdict"] = missing
        return entry

    def rows(self) -> list[dict[str, Any]]:
        """The rows of eval/samples."""
        return self.samples
