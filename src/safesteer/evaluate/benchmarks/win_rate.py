"""Win rate: how often a judge prefers a model's answers to the base's or to reference answers.

AlpacaEval's prompts and comparison, in both orders (docs/judges.md). Without its judge model and
its length correction, figures do not compare with its leaderboard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safesteer.errors import InputError
from safesteer.evaluate.benchmarks.sources import Loaded
from safesteer.evaluate.metrics import WIN_RATE
from safesteer.evaluate.scores import Score
from safesteer.events import Progress
from safesteer.judges.endpoint import WinRateJudge


def has_references(loaded: Loaded) -> bool:
    """Whether the benchmark's file has a reference answer to every prompt."""
    return all(item.reference for item in loaded.items)


def win_rate(
    comparer: WinRateJudge,
    loaded: Loaded,
    completions: Sequence[str],
    base: Sequence[str] | None,
    progress: Progress | None = None,
) -> Score:
    """Measure the share of prompts on which `completions` win; a tie counts half.

    They are compared with the answers of `base`; None compares with the reference answers of the
    file. Source: AlpacaEval (Li et al. 2023, github.com/tatsu-lab/alpaca_eval).
    """
    if base is None and not has_references(loaded):
        raise InputError(
            f"benchmark {loaded.name}: {loaded.source['from']} has no answers to compare with."
            " Try: a file with the columns instruction and output, or a run"
        )
    others = list(base) if base is not None else [item.reference for item in loaded.items]
    texts = [item.prompt.text for item in loaded.items]
    triples = list(zip(texts, others, completions, strict=True))
    scores = comparer.compare_answers(triples, progress)
    rows: list[dict[str, Any]] = [
        {
            "id": item.prompt.id,
            "category": item.prompt.category,
            "prompt": item.prompt.text,
            "completion": completion,
            "other": other,
            "score": score,
        }
        for item, (_, other, completion), score in zip(loaded.items, triples, scores, strict=True)
    ]
    details = {"against": "base" if base is not None else "the file's answers"}
    return Score(loaded.name, WIN_RATE, rows, loaded.source, comparer.name, details)
