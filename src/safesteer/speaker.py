"""Who answers: a model as it is, or a run's base, teacher or aligned model.

All three of a run share one set of weights where the student is a LoRA adapter, so that none of
them can be asked without saying which one is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from safesteer.config import EvaluateSettings
from safesteer.errors import InputError
from safesteer.evaluate.refusals import RefusalRate, refusal_rate
from safesteer.models.chat import Message
from safesteer.models.generate import Progress, generate
from safesteer.models.load import ChatModel, load_model
from safesteer.prompts import PromptSet
from safesteer.reporter import Reporter
from safesteer.targets import Target
from safesteer.teacher import Teacher

NAMES = ("base", "teacher", "aligned")
_LABELS = {"base": "the base", "teacher": "the teacher", "aligned": "the aligned model"}


@dataclass(frozen=True)
class Speaker:
    """A model that answers.

    Attributes:
        name: base, teacher, aligned, or model for one that belongs to no run.
        model: base weights, tokenizer and template.
        runner: what generates: ``model.model``, the PEFT model around it, or trained weights.
        teacher: how the base weights speak (a plain `Teacher()` for the base); None: as they are.
    """

    name: str
    model: ChatModel
    runner: Any
    teacher: Teacher | None = None

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        batch_size: int = 32,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[str]:
        """An answer to each conversation, in their order; greedy at temperature 0."""
        teacher = self.teacher or Teacher()
        prompts = [self.model.chat.ids(teacher.messages(messages)) for messages in conversations]
        torch.manual_seed(seed)

        def run() -> list[list[int]]:
            return generate(
                self.runner,
                self.model.tokenizer,
                prompts,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                batch_size=batch_size,
                progress=progress,
            )

        if self.teacher is None:
            answers = run()
        else:
            with self.teacher.active(self.runner):
                answers = run()
        return [self.model.chat.decode(ids) for ids in answers]

    def refusal_rates(
        self,
        sets: dict[str, PromptSet],
        settings: EvaluateSettings,
        reporter: Reporter | None = None,
    ) -> dict[str, RefusalRate]:
        """Refusal rates on the test part of each prompt set."""
        told = reporter or Reporter()
        told.stage("evaluate", f"judging {_LABELS.get(self.name, 'the model')}")
        return {
            name: refusal_rate(
                name,
                "safety" if name == "harmful" else "over_refusal",
                self.model,
                prompts.test[: settings.limit],
                teacher=self.teacher,
                student=self.runner,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
                progress=partial(told.progress, name),
            )
            for name, prompts in sets.items()
        }


def load_speakers(
    target: Target, names: Sequence[str] = ("aligned",), reporter: Reporter | None = None
) -> list[Speaker]:
    """The speakers `names` of a run, or the one model that `target` is.

    Raises InputError for a run in which they are not there yet, and for base or teacher of a plain
    model.
    """
    reporter = reporter or Reporter()
    if target.is_run:
        from safesteer.pipeline import Pipeline
        from safesteer.runs import RunDirectory

        run = RunDirectory.load(target.path)
        run.settings = target.settings
        pipeline = Pipeline(run, reporter)
        # The aligned one first: its adapter changes the modules that the others run on.
        order = sorted(names, key=lambda name: name != "aligned")
        speakers = {name: pipeline.speaker(name) for name in order}
        return [speakers[name] for name in names]
    if "teacher" in names:
        raise InputError(
            f"{target.settings.model.id} is a model and has no teacher; name the folder of a run"
        )
    reporter.stage("model", f"loading {target.settings.model.id}")
    model = load_model(target.settings.model)
    return [Speaker("model", model, model.model)]
