"""How often one model's answers are preferred to others, by a model behind an endpoint.

AlpacaEval's prompts and comparison, asked in both orders (docs/judges.md). Its own judge model and
its correction for length are not used, so figures are no leaderboard's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from safesteer.errors import InputError
from safesteer.evaluate.benchmarks.sources import Loaded
from safesteer.evaluate.scores import Score
from safesteer.models.generate import Progress


class Comparer(Protocol):
    """Says which of two answers is better; `safesteer.judges.endpoint.WinRateJudge`."""

    name: str

    def compare_answers(
        self, triples: Sequence[tuple[str, str, str]], progress: Progress | None = None
    ) -> list[float | None]:
        """For (instruction, a, b): 1 where b is better, 0 where a is, None if nobody can say."""
        ...


def has_references(loaded: Loaded) -> bool:
    """Whether the benchmark's file holds an answer to every prompt."""
    return all(item.reference for item in loaded.items)


def win_rate(
    comparer: Comparer,
    loaded: Loaded,
    completions: Sequence[str],
    base: Sequence[str] | None,
    progress: Progress | None = None,
) -> Score:
    """The share of prompts on which `completions` win, a tie being half.

    They compete with the base's answers, or without them with those in the benchmark's file.
    Raises InputError where there is neither.
    """
    against = "base" if base is not None else "the file's answers"
    if base is None and not has_references(loaded):
        raise InputError(
            f"benchmark {loaded.name}: {loaded.source['from']} has no answers to compare with; give"
            " a file with the columns instruction and output, or a run"
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
        for item, completion, other, score in zip(
            loaded.items, completions, others, scores, strict=True
        )
    ]
    details = {"against": against}
    return Score(loaded.name, "win_rate", rows, loaded.source, comparer.name, details)
