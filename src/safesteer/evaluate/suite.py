"""An evaluation: benchmarks and judges, checked before a model is loaded, and their results.

All models answer first, and each batch of answers is kept. Then one judge after the other reads
them, so that only one guard model is in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from safesteer.config.settings import Settings
from safesteer.evaluate.benchmarks.capability import Capability, check_requirements
from safesteer.evaluate.benchmarks.sources import Loaded, load_benchmarks
from safesteer.evaluate.benchmarks.win_rate import has_references, win_rate
from safesteer.evaluate.metrics import WIN_RATE
from safesteer.evaluate.refusals import Rate, judge_all, make_samples, with_one_leading_judge
from safesteer.evaluate.scores import Score
from safesteer.events import Reporter
from safesteer.inference import VARIANTS
from safesteer.inference.variant import ModelVariant
from safesteer.judges import Judge, make_judge
from safesteer.judges.endpoint import WinRateJudge
from safesteer.models.answer_cache import Cache
from safesteer.models.chat import Response
from safesteer.models.generate import Decoding
from safesteer.prompts import PromptSet

Result = Rate | Score
Results = dict[str, dict[str, Result]]  # {variant: {benchmark: result}}
Answers = dict[str, dict[str, list[Response]]]  # {variant: {benchmark: responses}}


@dataclass
class Suite:
    """The benchmarks and judges of an evaluation. Make it with `plan`."""

    settings: Settings  # resolved
    benchmarks: list[Loaded]
    judges: list[Judge]  # the leading one first
    comparer: WinRateJudge | None = None  # None where no benchmark needs it
    _capabilities: dict[str, Capability] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set)

    @classmethod
    def plan(
        cls,
        names: Sequence[str],
        settings: Settings,
        own: Mapping[str, PromptSet],
        cache_dir: Path | None = None,
    ) -> Suite:
        """Read the benchmarks `names` and make the judges, without loading any model.

        `own` are the run's prompt sets; `cache_dir` keeps the judges' replies.

        Raises:
            InputError: a name, a file or a setting is wrong.
        """
        evaluate = settings.evaluate
        judges = [
            make_judge(name, evaluate, settings.model.device, cache_dir)
            for name in dict.fromkeys(evaluate.judges)
        ]
        benchmarks = load_benchmarks(names, evaluate, own)
        comparer = None
        for loaded in benchmarks:
            if loaded.benchmark.harness is not None:
                check_requirements(loaded, evaluate)
            elif loaded.is_win_rate:
                comparer = comparer or _make_comparer(settings, cache_dir)
        return cls(settings, benchmarks, judges, comparer)

    def prepare(self) -> None:
        """Read the questions of capabilities and find the judges' weights, once; may download."""
        for judge in self.judges:
            check = getattr(judge, "check", None)
            if check is not None and judge.name not in self._checked:
                check()
                self._checked.add(judge.name)
        for loaded in self.benchmarks:
            if loaded.benchmark.harness is not None and loaded.name not in self._capabilities:
                limit = self.settings.evaluate.limit
                self._capabilities[loaded.name] = Capability.prepare(loaded, limit)

    @property
    def sha256(self) -> dict[str, str]:
        """{benchmark: hash of what the models are asked}."""
        return {loaded.name: loaded.sha256 for loaded in self.benchmarks}

    def measure(
        self, variants: Iterable[ModelVariant], cache_dir: Path, reporter: Reporter | None = None
    ) -> Results:
        """Let `variants` answer, and judge the answers.

        Capabilities are not measured for a teacher: lm-eval would not show it its context.

        `variants` are made one at a time; `cache_dir` keeps their answers, so that an interrupted
        evaluation resumes.
        """
        reporter = reporter or Reporter()
        self.prepare()
        answers: Answers = {}
        results: Results = {}
        for variant in variants:
            reporter.stage("evaluate", f"answers of {_label(variant)}")
            cache = Cache(cache_dir, variant.identity)
            answers[variant.name] = self._answer(variant, cache, reporter)
            results[variant.name] = {}
            for name, capability in self._capabilities.items():
                if variant.name != "teacher":
                    results[variant.name][name] = capability.measure(
                        variant,
                        cache,
                        self.settings.evaluate.advanced.batch_size,
                        partial(reporter.progress, name),
                    )
        self._judge(answers, results, reporter)
        for judge, notes, asked in self._gaps(results):
            if not getattr(judge, "remote", False) and len(notes) < asked:
                reporter.note(_gap(notes, asked, "answers", judge.name))
        self._compare(answers, results, reporter)
        order = [loaded.name for loaded in self.benchmarks]
        return {
            variant: {name: found[name] for name in order if name in found}
            for variant, found in results.items()
        }

    def missing(self, results: Results) -> str:
        """Which verdicts are missing and why, in one line; empty if the evaluation is complete.

        A server that failed may answer later. A guard model says the same again, so that without
        the few answers that it cannot judge its evaluation is complete.
        """
        lines = [
            _gap(notes, asked, "answers", judge.name)
            for judge, notes, asked in self._gaps(results)
            if getattr(judge, "remote", False) or len(notes) == asked
        ]
        if self.comparer is not None:
            found = [result for by_name in results.values() for result in by_name.values()]
            contests = [r for r in found if isinstance(r, Score) and r.metric == WIN_RATE]
            scores = [row["score"] for score in contests for row in score.samples]
            if none := scores.count(None):
                note = self.comparer.problem or "no reply names the better answer"
                lines.append(_gap([note] * none, len(scores), "pairs", self.comparer.name))
        return "; ".join(lines)

    def _gaps(self, results: Results) -> Iterator[tuple[Judge, list[str], int]]:
        """(judge, why it gave no verdict, answers that it read) of judges with such answers."""
        found = [result for by_name in results.values() for result in by_name.values()]
        rates = [result for result in found if isinstance(result, Rate)]
        asked = sum(sample.finished for rate in rates for sample in rate.samples)
        for judge in self.judges:
            if notes := [note for rate in rates for note in rate.no_verdict(judge.name)]:
                yield judge, notes, asked

    def _answer(
        self, variant: ModelVariant, cache: Cache, reporter: Reporter
    ) -> dict[str, list[Response]]:
        limit = self.settings.evaluate.max_new_tokens
        answers: dict[str, list[Response]] = {}
        for loaded in self.benchmarks:
            if loaded.items and not (loaded.is_win_rate and variant.name == "teacher"):
                answers[loaded.name] = variant.generate(
                    [item.prompt.messages for item in loaded.items],
                    Decoding(limit),
                    prefills=[item.prefill for item in loaded.items],
                    batch_size=self.settings.evaluate.advanced.batch_size,
                    cache=cache,
                    progress=partial(reporter.progress, loaded.name),
                )
        finished = [
            response.finished
            for found in answers.values()
            for response in found
            if not response.skipped
        ]
        if not all(finished):
            reporter.note(
                f"{finished.count(False)} of {len(finished)} answers of {_label(variant)} are not"
                f" judged: thinking did not end within {limit} tokens."
                " Try: a larger evaluate.max_new_tokens"
            )
        return answers

    def _judge(self, answers: Answers, results: Results, reporter: Reporter) -> None:
        """Add a rate for every variant and judged benchmark to `results`."""
        judged = [loaded for loaded in self.benchmarks if loaded.items and not loaded.is_win_rate]
        if not judged or not answers:
            return
        names = tuple(judge.name for judge in self.judges)
        reporter.stage("evaluate", f"judging by {', '.join(names)}")
        pairs = {
            f"{variant} {loaded.name}": [
                (item.request, response.answer if response.finished else None)
                for item, response in zip(loaded.items, found[loaded.name], strict=True)
            ]
            for variant, found in answers.items()
            for loaded in judged
        }
        verdicts = judge_all(self.judges, pairs, reporter.progress)
        for loaded in judged:
            prompts = [item.prompt for item in loaded.items]
            requests = [item.request for item in loaded.items]
            kind, metric = loaded.benchmark.kind, loaded.benchmark.metric
            rates = []
            for variant, found in answers.items():
                key = f"{variant} {loaded.name}"
                samples = make_samples(prompts, requests, found[loaded.name], verdicts[key])
                rate = Rate(
                    loaded.name, kind, samples, metric, names, loaded.source, loaded.skipped
                )
                rates.append(rate)
            for variant, rate in zip(answers, with_one_leading_judge(rates), strict=True):
                results[variant][loaded.name] = rate

    def _compare(self, answers: Answers, results: Results, reporter: Reporter) -> None:
        """Add win rates to `results`: against the base's answers, or the file's without a base."""
        for loaded in self.benchmarks:
            if not loaded.is_win_rate or self.comparer is None:
                continue
            texts = {
                variant: [response.answer for response in found[loaded.name]]
                for variant, found in answers.items()
                if loaded.name in found
            }
            for variant, completions in texts.items():
                if variant == "base" and len(answers) > 1 and not has_references(loaded):
                    continue  # the others are compared with it
                results[variant][loaded.name] = win_rate(
                    self.comparer,
                    loaded,
                    completions,
                    texts.get("base") if variant != "base" else None,
                    partial(reporter.progress, loaded.name),
                )


def unfinished(problem: str) -> str:
    """The message about an evaluation that lacks verdicts, as `Suite.missing` says."""
    return (
        f"the evaluation is unfinished: {problem}. Try: the same command again, which asks only for"
        " what is missing, or other evaluate.judges"
    )


def _gap(notes: Sequence[str], asked: int, what: str, judge: str) -> str:
    counts = Counter(map(_reason, notes))
    ((why, count),) = counts.most_common(1)
    others = f"; {len(notes) - count} for other reasons" if count < len(notes) else ""
    return f"{len(notes)} of {asked} {what} have no verdict by {judge} ({why}{others})"


def _reason(note: str) -> str:
    # A judge's output may quote the answer.
    if note.startswith("no verdict in the judge's output"):
        return "its output names none"
    return note.removeprefix("no verdict").lstrip(": ") or "it gives none"


def _make_comparer(settings: Settings, cache_dir: Path | None) -> WinRateJudge:
    models = [name.partition("=")[2] for name in settings.evaluate.judges if "endpoint=" in name]
    return WinRateJudge(settings.evaluate.endpoint, models[0] if models else None, cache_dir)


def _label(variant: ModelVariant) -> str:
    return VARIANTS.get(variant.name, "the model")
