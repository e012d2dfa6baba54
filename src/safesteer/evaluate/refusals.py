"""Refusal and attack success rates of a model's answers, by each judge, with every answer kept.

Judges are never averaged, and answers without a verdict are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from safesteer.evaluate.metrics import ATTACK_SUCCESS_RATE, REFUSAL_RATE, Kind
from safesteer.evaluate.statistics import disagreement, wilson_interval
from safesteer.events import Progress
from safesteer.inference.variant import ModelVariant
from safesteer.judges import Judge, Verdict
from safesteer.judges.looping import is_looping
from safesteer.judges.offline import OfflineJudge
from safesteer.judges.refusal_patterns import judge_refusal
from safesteer.models.chat import Response
from safesteer.models.generate import Decoding
from safesteer.models.load import ChatModel
from safesteer.prompts import Prompt
from safesteer.teacher import Teacher

NO_ANSWER = Verdict(note="no answer: unfinished thinking, or too long a prompt")


@dataclass(frozen=True)
class Sample:
    """A prompt with the model's greedy answer and its verdicts."""

    id: str
    category: str
    prompt: str
    completion: str
    refused: bool | None  # this and the score by the offline judge; None without an answer
    score: float | None
    looping: bool  # the answer, or the thinking without one, repeats itself
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)  # {judge: verdict}
    request: str = ""  # as the judges read it, where an attack hides it in the prompt
    thinking: str = ""
    finished: bool = True  # the model got past its thinking block to an answer
    cut: bool = False  # the token limit came before the end of the turn

    def to_json(self) -> dict[str, Any]:
        """A row of eval/samples, without optional keys at their usual value."""
        usual = {"request": "", "thinking": "", "finished": True, "cut": False}
        return {k: v for k, v in asdict(self).items() if k not in usual or v != usual[k]}


@dataclass(frozen=True)
class Rate:
    """The share of answers to one benchmark that refuse, or that a judge calls unsafe."""

    name: str  # of the benchmark
    kind: Kind  # prompts of safety should be refused, those of over_refusal answered
    samples: list[Sample]
    metric: str = REFUSAL_RATE
    judges: tuple[str, ...] = (OfflineJudge.name,)  # the leading one first
    source: Mapping[str, Any] | None = None
    skipped: int = 0  # rows of the source without a prompt

    @property
    def value(self) -> float | None:
        """The rate by the leading judge; None without any verdict."""
        return self._count(self.judges[0])["value"]

    def has_verdicts(self, judge: str) -> bool:
        """Whether `judge` gave a verdict on any answer."""
        return any(value is not None for value in self.outcomes(judge))

    def outcomes(self, judge: str) -> list[bool | None]:
        """Whether `judge` counts each answer; None without a verdict."""
        return [outcome(vars(sample), self.metric, judge) for sample in self.samples]

    def no_verdict(self, judge: str) -> list[str]:
        """Why `judge` gave no verdict on answers that it read, a note for each."""
        read = [sample.verdicts.get(judge) for sample in self.samples if sample.finished]
        return [
            str(verdict["note"])
            for verdict in read
            if verdict is not None and verdict["unsafe"] is None and verdict["refused"] is None
        ]

    def to_json(self) -> dict[str, Any]:
        """An entry of eval/MODEL.json.

        `refusals`, and their share that ends within the token limit (`refusals_ended`), are by the
        offline judge, whichever judge leads.
        """
        leading = self._count(self.judges[0])
        missing = leading.pop("no_verdict")
        looping = sum(sample.looping for sample in self.samples)
        entry = {
            "metric": self.metric,
            **leading,
            "judge": self.judges[0],
            "kind": self.kind,
            "looping": looping / len(self.samples),
        }
        refusals = [sample for sample in self.samples if sample.refused]
        if refusals:
            entry["refusals"] = len(refusals)
            entry["refusals_ended"] = sum(not s.cut for s in refusals) / len(refusals)
        if len(self.judges) > 1 or missing:
            entry["judges"] = {judge: self._count(judge) for judge in self.judges}
        if len(self.judges) > 1:
            entry["disagreement"] = disagreement({j: self.outcomes(j) for j in self.judges})
        if self.source is not None:
            entry["source"] = dict(self.source)
        if unfinished := sum(not sample.finished for sample in self.samples):
            entry["unfinished"] = unfinished
        if self.skipped:
            entry["skipped"] = self.skipped
        return entry

    def rows(self) -> list[dict[str, Any]]:
        """The rows of eval/samples."""
        return [sample.to_json() for sample in self.samples]

    def _count(self, judge: str) -> dict[str, Any]:
        verdicts = [value for value in self.outcomes(judge) if value is not None]
        return {
            "value": sum(verdicts) / len(verdicts) if verdicts else None,
            "ci95": list(wilson_interval(sum(verdicts), len(verdicts))),
            "n": len(verdicts),
            "no_verdict": len(self.samples) - len(verdicts),
        }


def outcome(row: Mapping[str, Any], metric: str, judge: str) -> bool | None:
    """Whether `judge` counts a row of eval/samples for `metric`; None without a verdict."""
    verdict = row.get("verdicts", {}).get(judge)
    if verdict is not None:
        value = verdict["unsafe" if metric == ATTACK_SUCCESS_RATE else "refused"]
        return None if value is None else bool(value)
    if judge == OfflineJudge.name and metric == REFUSAL_RATE and row["refused"] is not None:
        return bool(row["refused"])
    return None


def with_one_leading_judge(rates: Sequence[Rate]) -> list[Rate]:
    """Give the rates of several models on one benchmark the same leading judge.

    Figures of different judges must not be compared: a server may go down between two models. The
    first judge with verdicts on every model leads, else the first with verdicts on any. Where no
    judge detects refusals (guard models do not), the offline judge is added.
    """
    judges = list(rates[0].judges)
    if rates[0].metric == REFUSAL_RATE and not any(
        rate.has_verdicts(judge) for rate in rates for judge in judges
    ):
        judges.append(OfflineJudge.name)
    rates = [replace(rate, judges=tuple(judges)) for rate in rates]
    for enough in (all, any):
        leading = next((j for j in judges if enough(rate.has_verdicts(j) for rate in rates)), None)
        if leading is not None:
            judges.sort(key=lambda judge: judge != leading)
            return [replace(rate, judges=tuple(judges)) for rate in rates]
    return list(rates)


def make_samples(
    prompts: Sequence[Prompt],
    requests: Sequence[str],
    responses: Sequence[Response],
    verdicts: Mapping[str, Sequence[Verdict]],  # {judge: one per prompt}
) -> list[Sample]:
    """Join what the model read and answered with what the judges read and found."""
    samples = []
    for row, (prompt, request, response) in enumerate(
        zip(prompts, requests, responses, strict=True)
    ):
        offline = judge_refusal(response.answer, request)
        samples.append(
            Sample(
                id=prompt.id,
                category=prompt.category,
                prompt=prompt.text,
                completion=response.answer,
                refused=offline.refused if response.finished else None,
                score=round(offline.score, 4) if response.finished else None,
                looping=is_looping(response.answer if response.finished else response.thinking),
                verdicts={judge: _as_json(found[row]) for judge, found in verdicts.items()},
                request="" if request == prompt.text else request,
                thinking=response.thinking,
                finished=response.finished,
                cut=response.cut,
            )
        )
    return samples


def judge_all(
    judges: Sequence[Judge],
    pairs: Mapping[str, Sequence[tuple[str, str | None]]],
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[str, list[Verdict]]]:
    """Judge answers by one judge after the other, so that one guard model is in memory at a time.

    Remote judges run first: a server that is down, or rejects the key, is noticed before a guard
    model has worked for hours.

    An answer of `pairs`, {key: (request, answer) pairs}, is None where the model did not finish
    thinking, and gets no verdict. Returns {key: {judge: verdicts}}.
    """
    verdicts: dict[str, dict[str, list[Verdict]]] = {key: {} for key in pairs}
    for judge in sorted(judges, key=lambda judge: not getattr(judge, "remote", False)):
        for key, answers in pairs.items():
            report = progress and partial(progress, f"{judge.name}: {key}")
            answered = [(request, answer) for request, answer in answers if answer is not None]
            found = iter(judge.judge(answered, report))
            verdicts[key][judge.name] = [
                NO_ANSWER if answer is None else next(found) for _, answer in answers
            ]
        release = getattr(judge, "release", None)
        if release is not None:
            release()
    return verdicts


def refusal_rate(
    model: ChatModel,
    prompts: Sequence[Prompt],
    *,
    kind: Kind = "safety",
    teacher: Teacher | None = None,
    student: Any = None,
    max_new_tokens: int = 64,
    progress: Progress | None = None,
) -> Rate:
    """Measure how many greedy answers refuse, by the offline judge. Seeds torch's generator.

    Args:
        model: the base model.
        prompts: as `load_prompts` returns them.
        kind: safety, where refusing is right, or over_refusal.
        teacher: let the base weights answer as this teacher.
        student: the trained model, if it is not ``model.model``.
        max_new_tokens: the most tokens in an answer.
        progress: called with (done, total) prompts.

    Returns:
        The rate: its `value` in [0, 1] with every answer as a sample.

    Raises:
        SafeSteerError: memory does not hold a single prompt.
    """
    variant = ModelVariant("model", model, model.model if student is None else student, teacher)
    responses = variant.generate(
        [prompt.messages for prompt in prompts], Decoding(max_new_tokens), progress=progress
    )
    requests = [prompt.text for prompt in prompts]
    return Rate("prompts", kind, make_samples(prompts, requests, responses, {}))


def _as_json(verdict: Verdict) -> dict[str, Any]:
    score = None if verdict.score is None else round(verdict.score, 4)
    return {**asdict(verdict), "score": score}
