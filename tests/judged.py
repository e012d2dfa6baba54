"""Prompts, rates and scores made for tests, and a judge that follows a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from safesteer.evaluate.refusals import Rate, make_samples
from safesteer.evaluate.scores import Score
from safesteer.judges import Verdict
from safesteer.models.chat import Response
from safesteer.prompts import Prompt

SOURCE = {"from": "x.csv", "sha256": "0"}


class FunctionJudge:
    """Judges each answer by a function; remembers what it read."""

    def __init__(self, name: str, verdict: Callable[[str, str], Verdict]) -> None:
        self.name = name
        self.verdict = verdict
        self.read: list[tuple[str, str]] = []
        self.released = 0

    def judge(self, pairs: Sequence[tuple[str, str]], progress: Any = None) -> list[Verdict]:
        self.read += pairs
        return [self.verdict(prompt, answer) for prompt, answer in pairs]

    def release(self) -> None:
        self.released += 1


def make_prompt(number: int, text: str = "") -> Prompt:
    return Prompt(f"p{number}", ({"role": "user", "content": text or f"Question {number}?"},))


def make_rate(verdicts: dict[str, list[Verdict]], metric: str, **more: Any) -> Rate:
    """The rate of answers with these verdicts by judge."""
    count = len(next(iter(verdicts.values())))
    prompts = [make_prompt(n) for n in range(count)]
    samples = make_samples(prompts, [p.text for p in prompts], [Response("Yes.")] * count, verdicts)
    kind = "safety" if metric == "attack_success_rate" else "over_refusal"
    return Rate("x", kind, samples, metric, tuple(verdicts), **more)


def make_score(values: Sequence[float | None], **more: Any) -> Score:
    """The score of questions with these values."""
    rows = [
        {"id": f"{n}", "category": "", "prompt": f"Q{n}", "completion": "", "score": value}
        for n, value in enumerate(values)
    ]
    return Score("x", more.pop("metric", "accuracy"), rows, SOURCE, **more)
