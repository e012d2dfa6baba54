"""What the judges say of a model's answers to one set of prompts, with every answer kept.

On harmless prompts, and on our own harmful ones, it is counted how many were refused; on harmful
prompts from outside, how many attacks succeeded. Each judge has its own count; none is averaged
with another's, and an answer without a verdict is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

from safesteer.evaluate.statistics import disagreement, wilson_interval
from safesteer.inference.variant import ModelVariant
from safesteer.judges import Judge, Verdict
from safesteer.judges.looping import is_looping
from safesteer.judges.refusal_patterns import judge_refusal
from safesteer.models.chat import Response
from safesteer.models.generate import Progress
from safesteer.models.load import ChatModel
from safesteer.teacher import Teacher

Kind = Literal["safety", "over_refusal"]
JUDGE = "offline-refusal"
UNFINISHED = Verdict(note="no answer: the thinking block was not ended")


@dataclass(frozen=True)
class Sample:
    """A prompt, what the model answered (greedy), and what is said of it.

    `refused` and `score` are the offline judge's, which is always there; `verdicts` holds what
    each judge of the evaluation says. `request` is what the judges read where an attack hides it.
    `thinking` is what the model thought first. Where it was not `finished` there is no answer, and
    nothing is said of it: `refused` and `score` are None. `cut`: the limit of tokens came before
    the end of the turn.
    """

    id: str
    category: str
    prompt: str
    completion: str
    refused: bool | None
    score: float | None
    looping: bool
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)
    request: str = ""
    thinking: str = ""
    finished: bool = True
    cut: bool = False

    def to_json(self) -> dict[str, Any]:
        """A row of eval/samples."""
        row = asdict(self)
        if not self.request:
            del row["request"]
        if not self.thinking:
            del row["thinking"]
        if self.finished:
            del row["finished"]
        if not self.cut:
            del row["cut"]
        return row


@dataclass(frozen=True)
class Rate:
    """The share of answers to one set of prompts that were refused, or that did what was asked.

    Attributes:
        name: of the set.
        kind: on safety refusing is right, on over_refusal answering.
        samples: every answer.
        metric: refusal_rate or attack_success_rate.
        judges: whose counts there are, the leading one first.
        source: where the prompts are from.
        skipped: rows of the source without a prompt.
    """

    name: str
    kind: Kind
    samples: list[Sample]
    metric: str = "refusal_rate"
    judges: tuple[str, ...] = (JUDGE,)
    source: Mapping[str, Any] | None = None
    skipped: int = 0

    @property
    def value(self) -> float | None:
        """The share by the leading judge; None where it gave no verdict."""
        return self._count(self.leading)["value"]

    @property
    def leading(self) -> str:
        """Whose count is the figure."""
        return self.judges[0]

    def spoke(self, judge: str) -> bool:
        """Whether `judge` gave a verdict on any answer."""
        return any(value is not None for value in self.counted(judge))

    def counted(self, judge: str) -> list[bool | None]:
        """For each answer whether `judge` counts it; None without a verdict."""
        return [counted(vars(sample), self.metric, judge) for sample in self.samples]

    def to_json(self) -> dict[str, Any]:
        """An entry of eval/MODEL.json.

        `refusals`, and the share of them that `refusals_ended` within the limit of tokens, are the
        offline judge's, whoever leads.
        """
        leading = self._count(self.leading)
        missing = leading.pop("no_verdict")
        looping = sum(sample.looping for sample in self.samples)
        entry = {
            "metric": self.metric,
            **leading,
            "judge": self.leading,
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
            entry["disagreement"] = disagreement({j: self.counted(j) for j in self.judges})
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
        given = [value for value in self.counted(judge) if value is not None]
        return {
            "value": sum(given) / len(given) if given else None,
            "ci95": list(wilson_interval(sum(given), len(given))),
            "n": len(given),
            "no_verdict": len(self.samples) - len(given),
        }


def lead_by_one_judge(rates: Sequence[Rate]) -> list[Rate]:
    """The rates of several models on the same prompts, all with the same leading judge.

    It is the first that gave a verdict on every model's answers, or else on any: a guard model
    says nothing of refusals, and a server may have gone down between two models, whose figures
    would then be of different judges. Where no judge at all says what is refused, the offline
    judge is added.
    """
    judges = list(rates[0].judges)
    if rates[0].metric == "refusal_rate" and not any(r.spoke(j) for r in rates for j in judges):
        judges.append(JUDGE)
    rates = [replace(rate, judges=tuple(judges)) for rate in rates]
    for enough in (all, any):
        leading = next((j for j in judges if enough(rate.spoke(j) for rate in rates)), None)
        if leading is not None:
            judges.sort(key=lambda judge: judge != leading)
            return [replace(rate, judges=tuple(judges)) for rate in rates]
    return list(rates)


def counted(row: Mapping[str, Any], metric: str, judge: str) -> bool | None:
    """Whether a row of eval/samples counts for `metric` in the eyes of `judge`."""
    verdict = row.get("verdicts", {}).get(judge)
    if verdict is not None:
        said = verdict["unsafe" if metric == "attack_success_rate" else "refused"]
        return None if said is None else bool(said)
    if judge == JUDGE and metric == "refusal_rate" and row["refused"] is not None:
        return bool(row["refused"])
    return None


def make_samples(
    prompts: Sequence[Any],
    requests: Sequence[str],
    completions: Sequence[Response],
    verdicts: Mapping[str, Sequence[Verdict]],
) -> list[Sample]:
    """What was asked (`prompts` are `safesteer.prompts.Prompt`), answered and judged, in rows."""
    samples = []
    for row, (prompt, request, said) in enumerate(zip(prompts, requests, completions, strict=True)):
        offline = judge_refusal(said.answer, request)
        samples.append(
            Sample(
                id=prompt.id,
                category=prompt.category,
                prompt=prompt.text,
                completion=said.answer,
                refused=offline.refused if said.finished else None,
                score=round(offline.score, 4) if said.finished else None,
                looping=is_looping(said.answer if said.finished else said.thinking),
                verdicts={judge: _as_json(said[row]) for judge, said in verdicts.items()},
                request="" if request == prompt.text else request,
                thinking=said.thinking,
                finished=said.finished,
                cut=said.cut,
            )
        )
    return samples


def judge_all(
    judges: Sequence[Judge],
    pairs: Mapping[str, Sequence[tuple[str, str | None]]],
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[str, list[Verdict]]]:  # {key of pairs: {judge: verdicts}}
    """Every judge's verdicts on (request, answer) pairs, one judge after the other.

    So that only one guard model is in memory at a time. Nobody is asked about an answer that is
    None, of a model that did not end its thoughts. `progress` is told (what, done, total).
    """
    said: dict[str, dict[str, list[Verdict]]] = {key: {} for key in pairs}
    # A server that is down, or refuses the key, is found out before a guard has worked for hours;
    # its own replies are kept.
    for judge in sorted(judges, key=lambda judge: not getattr(judge, "remote", False)):
        for key, asked in pairs.items():
            told = progress and partial(progress, f"{judge.name}: {key}")
            answered = [(request, answer) for request, answer in asked if answer is not None]
            verdicts = iter(judge.judge(answered, told))
            said[key][judge.name] = [
                UNFINISHED if answer is None else next(verdicts) for _, answer in asked
            ]
        release = getattr(judge, "release", None)
        if release is not None:
            release()
    return said


def refusal_rate(
    name: str,
    kind: Kind,
    model: ChatModel,
    prompts: Sequence[Any],
    *,
    teacher: Teacher | None = None,
    student: Any = None,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Rate:
    """Let a model answer `prompts` (`safesteer.prompts.Prompt`) greedily and judge each offline.

    `student` is the trained model when it is not ``model.model``; with `teacher` the base weights
    answer as the teacher. Seeds torch's global generator.
    """
    variant = ModelVariant("model", model, model.model if student is None else student, teacher)
    said = variant.generate(
        [prompt.messages for prompt in prompts],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    return Rate(name, kind, make_samples(prompts, [prompt.text for prompt in prompts], said, {}))


def _as_json(verdict: Verdict) -> dict[str, Any]:
    score = None if verdict.score is None else round(verdict.score, 4)
    return {**asdict(verdict), "score": score}
