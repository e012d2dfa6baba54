"""An evaluation: its benchmarks and judges, found before any model is loaded, and what comes of it.

Models answer everything first, each batch being kept as it finishes; then the judges read, one
after the other, so that no two guard models are in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from safesteer.config.settings import Settings
from safesteer.evaluate.benchmarks.capability import Capability, check_requirements
from safesteer.evaluate.benchmarks.sources import Loaded, load_benchmarks
from safesteer.evaluate.benchmarks.win_rate import Comparer, has_references, win_rate
from safesteer.evaluate.refusals import Rate, judge_all, lead_by_one_judge, make_samples
from safesteer.events import Reporter
from safesteer.inference import VARIANTS
from safesteer.inference.variant import ModelVariant
from safesteer.judges import Judge, make_judge
from safesteer.judges.registry import win_rate_judge
from safesteer.models.answer_cache import Cache
from safesteer.models.chat import Response
from safesteer.prompts import PromptSet


class Result(Protocol):
    """What came of one benchmark: `safesteer.evaluate.refusals.Rate` or `scores.Score`."""

    def to_json(self) -> dict[str, Any]:
        """An entry of eval/MODEL.json."""
        ...

    def rows(self) -> list[dict[str, Any]]:
        """The rows of eval/samples."""
        ...


Results = dict[str, dict[str, Result]]  # {model: {benchmark: result}}


@dataclass
class Suite:
    """The benchmarks and judges of an evaluation. Make it with `plan`.

    Attributes:
        settings: everything resolved.
        benchmarks: with their prompts.
        judges: the leading one first.
        comparer: says which answers are better; None where no benchmark needs it.
    """

    settings: Settings
    benchmarks: list[Loaded]
    judges: list[Judge]
    comparer: Comparer | None = None
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

        `own` are our prompt sets; an endpoint's replies are kept in `cache_dir`. Raises InputError,
        one line, for whatever is wrong with a name, a file or a setting.
        """
        chosen = settings.evaluate
        judges = [
            make_judge(name, chosen, settings.model.device, cache_dir)
            for name in dict.fromkeys(chosen.judges)
        ]
        benchmarks = load_benchmarks(names, chosen, own)
        comparer = None
        for loaded in benchmarks:
            if loaded.benchmark.harness is not None:
                check_requirements(loaded, chosen)
            elif loaded.benchmark.metric == "win_rate":
                comparer = comparer or _comparer(settings, cache_dir)
        return cls(settings, benchmarks, judges, comparer)

    def prepare(self) -> None:
        """Read the questions of capability benchmarks and find the judges' weights; once.

        Both may come from the hub. Raises InputError for what cannot be had.
        """
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
        """{benchmark: hash of what is asked}."""
        return {loaded.name: loaded.sha256 for loaded in self.benchmarks}

    def measure(
        self, variants: Iterable[ModelVariant], cache_dir: Path, reporter: Reporter | None = None
    ) -> Results:
        """Let `variants` answer, and judge the answers.

        Capabilities are not measured for a teacher: lm-eval would not show it what it reads first.
        """
        told = reporter or Reporter()
        self.prepare()
        answers: dict[str, dict[str, list[Response]]] = {}
        results: Results = {}
        for variant in variants:
            told.stage("evaluate", f"asking {VARIANTS.get(variant.name, 'the model')}")
            cache = Cache(cache_dir, variant.identity)
            answers[variant.name] = self._ask(variant, cache, told)
            results[variant.name] = {}
            for name, capability in self._capabilities.items():
                if variant.name != "teacher":
                    results[variant.name][name] = capability.measure(
                        variant, cache, self.settings.evaluate.advanced.batch_size, _bar(told, name)
                    )
        self._judge(answers, results, told)
        self._compare(answers, results, told)
        order = [loaded.name for loaded in self.benchmarks]
        return {
            who: {name: found[name] for name in order if name in found}
            for who, found in results.items()
        }

    def _ask(
        self, variant: ModelVariant, cache: Cache, told: Reporter
    ) -> dict[str, list[Response]]:
        answers: dict[str, list[Response]] = {}
        for loaded in self.benchmarks:
            if loaded.items and not (_is_win_rate(loaded) and variant.name == "teacher"):
                answers[loaded.name] = variant.generate(
                    [item.prompt.messages for item in loaded.items],
                    prefills=[item.prefill for item in loaded.items],
                    max_new_tokens=self.settings.evaluate.max_new_tokens,
                    batch_size=self.settings.evaluate.advanced.batch_size,
                    cache=cache,
                    progress=_bar(told, loaded.name),
                )
        said = [each for found in answers.values() for each in found]
        if unfinished := sum(not each.finished for each in said):
            limit = self.settings.evaluate.max_new_tokens
            told.note(
                f"{unfinished} of {len(said)} answers of {VARIANTS.get(variant.name, 'the model')}"
                f" did not get past the thinking block in {limit} tokens and are not judged;"
                " raise evaluate.max_new_tokens"
            )
        return answers

    def _judge(
        self, answers: dict[str, dict[str, list[Response]]], results: Results, told: Reporter
    ) -> None:
        judged = [b for b in self.benchmarks if b.items and not _is_win_rate(b)]
        pairs = {
            f"{who} {loaded.name}": [
                (item.request, said.answer if said.finished else None)
                for item, said in zip(loaded.items, texts[loaded.name], strict=True)
            ]
            for who, texts in answers.items()
            for loaded in judged
        }
        names = tuple(judge.name for judge in self.judges)
        if pairs:
            told.stage("evaluate", f"judging by {', '.join(names)}")
        verdicts = judge_all(self.judges, pairs, told.progress)
        for loaded in judged:
            benchmark = loaded.benchmark
            assert benchmark.kind != "capability"
            rates = []
            for who, texts in answers.items():
                samples = make_samples(
                    [item.prompt for item in loaded.items],
                    [item.request for item in loaded.items],
                    texts[loaded.name],
                    verdicts[f"{who} {loaded.name}"],
                )
                rates.append(
                    Rate(
                        loaded.name,
                        benchmark.kind,
                        samples,
                        benchmark.metric,
                        names,
                        loaded.source,
                        loaded.skipped,
                    )
                )
            for who, rate in zip(answers, lead_by_one_judge(rates), strict=True):
                results[who][loaded.name] = rate

    def _compare(
        self, answers: dict[str, dict[str, list[Response]]], results: Results, told: Reporter
    ) -> None:
        for loaded in self.benchmarks:
            if not _is_win_rate(loaded) or self.comparer is None:
                continue
            for who, texts in answers.items():
                if loaded.name not in texts:
                    continue
                base = _texts(answers, "base", loaded) if who != "base" else None
                if who == "base" and len(answers) > 1 and not has_references(loaded):
                    continue  # it is what the others are compared with
                results[who][loaded.name] = win_rate(
                    self.comparer,
                    loaded,
                    [said.answer for said in texts[loaded.name]],
                    base,
                    _bar(told, loaded.name),
                )


def _comparer(settings: Settings, cache_dir: Path | None) -> Comparer:
    models = [name.partition("=")[2] for name in settings.evaluate.judges if "endpoint=" in name]
    return win_rate_judge(settings.evaluate, (models or [""])[0] or None, cache_dir)


def _texts(
    answers: dict[str, dict[str, list[Response]]], who: str, loaded: Loaded
) -> list[str] | None:
    return [said.answer for said in answers[who][loaded.name]] if who in answers else None


def _is_win_rate(loaded: Loaded) -> bool:
    return loaded.benchmark.metric == "win_rate"


def _bar(told: Reporter, what: str) -> Any:
    return partial(told.progress, what)
