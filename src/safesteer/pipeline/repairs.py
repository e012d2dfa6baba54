"""Wrong refusals: harmless training prompts that the base refuses, found on its own answers.

With `train.wrong_refusals: repair` the model learns to answer these. Steering away from refusal
must not become a way to remove it, so that three guards, none of them an option, decide which:

- a prompt that nearly stands in a harmful set is left out, and a set with many of them is refused;
- one that a probe takes for harmful keeps its refusal, and a set with many of them is refused;
- there are never more of them than harmful prompts in the same training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from safesteer.config.settings import Settings, TrainSettings
from safesteer.direction.probe import HarmProbe
from safesteer.distill.plan import TrainingPrompts
from safesteer.errors import InputError
from safesteer.evaluate.refusals import Sample, make_samples
from safesteer.events import Reporter
from safesteer.inference.variant import ModelVariant
from safesteer.models.answer_cache import Cache
from safesteer.models.generate import Decoding
from safesteer.prompts import Prompt, PromptSet
from safesteer.prompts.overlap import check_share, harmful_too

# A probe is a guess. On the built-in model it takes 26% of our own borderline training prompts for
# harmful, and about 84% of harmful ones; fitted to more prompts it errs less
# (research/log/2026-11-27-linear-probe.md), and this limit can come down.
MOST_DOUBTED = 0.5
LEAST_ACCURACY = 0.75  # of the probe; guessing has 0.5, and the built-in model about 0.88

Ids = dict[str, list[str]]  # {prompt set: ids of its prompts}


@dataclass(frozen=True)
class Repairs:
    """What the base answered to the harmless side of its training prompts."""

    samples: dict[str, list[Sample]]  # {prompt set: answers with verdicts}
    repaired: Ids  # wrongly refused, and taught to answer
    doubted: Ids  # refused, and harmful by the probe: they stay refused
    left_out: Ids  # near-duplicates of harmful prompts, not trained on
    surplus: int  # wrongly refused, beyond the number of harmful training prompts

    def to_json(self) -> dict[str, Any]:
        """The content of repairs/repairs.json, without any text."""
        return {
            "asked": {name: len(found) for name, found in self.samples.items()},
            "categories": {
                name: dict(Counter(s.category for s in found if s.id in set(self.repaired[name])))
                for name, found in self.samples.items()
            },
            "repaired": self.repaired,
            "doubted": self.doubted,
            "left_out": self.left_out,
            "surplus": self.surplus,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The rows of repairs/answers.jsonl: every prompt with its answer and verdict."""
        return [
            {"set": name, **sample.to_json()}
            for name, found in self.samples.items()
            for sample in found
        ]


def find_repairs(
    base: ModelVariant,
    sets: Mapping[str, PromptSet],
    settings: Settings,
    cache: Cache | None = None,
    reporter: Reporter | None = None,
) -> Repairs:
    """Let the base answer the harmless training prompts, and choose which refusals to repair.

    Raises:
        InputError: a set holds too many harmful prompts, or the base refuses all, or none of its
            answers is finished.
    """
    reporter = reporter or Reporter()
    left_out = harmful_too(sets)
    asked: dict[str, list[Prompt]] = {
        name: [prompt for prompt in sets[name].train if prompt.id not in set(left_out[name])]
        for name in dict.fromkeys(settings.train.advanced.anchor_sets)
    }
    doubts = _doubts(base, asked, sets, reporter)
    prompts = [prompt for found in asked.values() for prompt in found]
    responses = base.generate(
        [prompt.messages for prompt in prompts],
        Decoding(settings.evaluate.max_new_tokens),
        batch_size=settings.evaluate.advanced.batch_size,
        cache=cache,
        progress=partial(reporter.progress, "answers of the base"),
    )
    judged = iter(make_samples(prompts, [prompt.text for prompt in prompts], responses, {}))
    samples: dict[str, list[Sample]] = {
        name: [next(judged) for _ in found] for name, found in asked.items()
    }
    _check_answers(samples, settings.evaluate.max_new_tokens)
    refused = [(name, s.id) for name, found in samples.items() for s in found if s.refused]
    wrong = [(name, key) for name, key in refused if key not in doubts[name]]
    most = len(sets["harmful"].train[: settings.train.num_prompts])
    # Evenly from all of them, so that every set and kind keeps its share.
    chosen = wrong if len(wrong) <= most else [wrong[n * len(wrong) // most] for n in range(most)]
    return Repairs(
        samples,
        _by_set(asked, chosen),
        _by_set(asked, [each for each in refused if each not in set(wrong)]),
        left_out,
        len(wrong) - len(chosen),
    )


def _doubts(
    base: ModelVariant,
    asked: Mapping[str, Sequence[Prompt]],
    sets: Mapping[str, PromptSet],
    reporter: Reporter,
) -> dict[str, set[str]]:
    """{prompt set: ids of prompts that the probe takes for harmful}."""
    report = partial(reporter.progress, "probe for harmful requests")
    with base.active():
        probe, doubts = HarmProbe(base.model, report), {}
        if probe.accuracy < LEAST_ACCURACY:
            raise InputError(
                "wrong refusals cannot be repaired safely: a probe on the base's activations tells"
                f" harmful requests from harmless ones in only {100 * probe.accuracy:.0f}% of"
                f" cases, and {100 * LEAST_ACCURACY:.0f}% are needed. Try:"
                " train.wrong_refusals=keep, or another model"
            )
        for name, prompts in asked.items():
            harmful = probe.is_harmful([prompt.messages for prompt in prompts], report)
            ids = [prompt.id for prompt, found in zip(prompts, harmful, strict=True) if found]
            what = "look harmful to a probe on the base's activations"
            check_share(sets[name], ids, len(prompts), MOST_DOUBTED, what)
            doubts[name] = set(ids)
    return doubts


def _check_answers(samples: Mapping[str, Sequence[Sample]], most: int) -> None:
    answered = [s for found in samples.values() for s in found if s.refused is not None]
    if not answered:
        raise InputError(
            f"the base finished none of its answers to harmless prompts in {most} tokens, so that"
            " its wrong refusals are unknown. Try: a larger evaluate.max_new_tokens, or"
            " train.wrong_refusals=keep"
        )
    if all(s.refused for s in answered):
        raise InputError(
            f"the base refuses all of {len(answered)} harmless training prompts: it has no answers"
            " of its own that training could hold it to. Try: safesteer chat, to see what it"
            " writes, another model, or train.wrong_refusals=keep"
        )


def _by_set(names: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> Ids:
    return {name: [key for of, key in pairs if of == name] for name in names}


def training_prompts(
    settings: TrainSettings, sets: Mapping[str, PromptSet], repairs: Mapping[str, Any] | None = None
) -> TrainingPrompts:
    """The prompts of a training; `repairs` is the content of repairs.json."""

    def messages(name: str, ids: Mapping[str, Sequence[str]], within: bool) -> list[Any]:
        known = set(ids.get(name, ()))
        return [p.messages for p in sets[name].train if (p.id in known) == within]

    left_out, repaired = (
        {} if repairs is None else repairs[key] for key in ("left_out", "repaired")
    )
    return TrainingPrompts(
        [prompt.messages for prompt in sets["harmful"].train],
        [m for name in settings.advanced.anchor_sets for m in messages(name, left_out, False)],
        [m for name in repaired for m in messages(name, repaired, True)],
    )
