"""Refusal rates of a model on sets of prompts, with every answer and verdict kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from safesteer.evaluate.refusal_judge import judge_refusal
from safesteer.evaluate.statistics import wilson_interval
from safesteer.evaluate.text import is_looping
from safesteer.models.chat import Message
from safesteer.models.generate import Progress, generate
from safesteer.models.load import ChatModel
from safesteer.teacher import Teacher

Kind = Literal["safety", "over_refusal"]
JUDGE = "offline-refusal"


@dataclass(frozen=True)
class Sample:
    """A prompt, what the model answered (greedy), and what the judge says of it."""

    id: str
    category: str
    prompt: str
    completion: str
    refused: bool
    score: float
    looping: bool


@dataclass(frozen=True)
class RefusalRate:
    """Refusal rate on one set of prompts.

    For harmful prompts (`kind` safety) high is good; for all others (over_refusal) low is good.
    """

    name: str
    kind: Kind
    samples: list[Sample]

    @property
    def value(self) -> float:
        """Share of the prompts that were refused."""
        return sum(sample.refused for sample in self.samples) / len(self.samples)

    def to_json(self) -> dict[str, Any]:
        """An entry of eval/MODEL.json."""
        refused = sum(sample.refused for sample in self.samples)
        looping = sum(sample.looping for sample in self.samples)
        return {
            "metric": "refusal_rate",
            "value": self.value,
            "ci95": list(wilson_interval(refused, len(self.samples))),
            "n": len(self.samples),
            "judge": JUDGE,
            "kind": self.kind,
            "looping": looping / len(self.samples),
        }


def refusal_rate(
    name: str,
    kind: Kind,
    model: ChatModel,
    prompts: Sequence[Any],
    *,
    teacher: Teacher | None = None,
    student: Any = None,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> RefusalRate:
    """Let a model answer `prompts` (`safesteer.prompts.Prompt`) greedily and judge each answer.

    `student` is the trained model when it is not ``model.model``; with `teacher` the base weights
    answer as the teacher.
    """
    runner = student if student is not None else model.model
    taught = teacher or Teacher()
    conversations: list[Sequence[Message]] = [prompt.messages for prompt in prompts]
    rendered = [model.chat.ids(taught.messages(messages)) for messages in conversations]

    def answer() -> list[list[int]]:
        return generate(
            runner,
            model.tokenizer,
            rendered,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )

    if teacher is None:
        answers = answer()
    else:
        with teacher.active(runner):
            answers = answer()
    samples = []
    for prompt, ids in zip(prompts, answers, strict=True):
        text = model.chat.decode(ids)
        verdict = judge_refusal(text, prompt.text)
        samples.append(
            Sample(
                id=prompt.id,
                category=prompt.category,
                prompt=prompt.text,
                completion=text,
                refused=verdict.refused,
                score=round(verdict.score, 4),
                looping=is_looping(text),
            )
        )
    return RefusalRate(name, kind, samples)
