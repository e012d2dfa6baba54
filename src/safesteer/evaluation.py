"""Evaluates whatever the user names: a run as its last stage, one of its models, or any model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from safesteer.config import Settings
from safesteer.models.load import fingerprint
from safesteer.pipeline import Pipeline, load_results
from safesteer.prompts import load_prompt_sets
from safesteer.reporter import Reporter
from safesteer.runs import RunDirectory
from safesteer.speaker import load_speakers
from safesteer.targets import Target


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        name: the model that was asked about: base, teacher, aligned, or model.
        results: {model: {benchmark: entry}}, with others of the run where they are known.
        samples: {prompt set: rows} with prompts, completions and verdicts of `name`.
    """

    name: str
    results: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]

    def to_json(self) -> dict[str, Any]:
        """The content of eval/NAME.json."""
        return {"model": self.name, "benchmarks": self.results[self.name]}


def evaluate_target(
    target: Target,
    name: str = "aligned",
    *,
    changed: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Evaluate `name` of a run, or the model that `target` is.

    Without changed settings the aligned model's evaluation is the run's last stage, done or not,
    and base and teacher are read from it. With changed settings, or where the stage has not been
    reached, the one model is judged and the run stays as it is.
    """
    if target.is_run and not changed:
        if name == "aligned":
            _finish(target.path, target.settings, reporter)
        run = RunDirectory.load(target.path)
        if run.output_hashes("evaluate"):
            return Evaluation(name, load_results(run), _stored_samples(run, name))
    settings = target.settings
    sets = load_prompt_sets(settings.prompts, settings.seed)
    (speaker,) = load_speakers(target, [name], reporter)
    rates = speaker.refusal_rates(sets, settings.evaluate, reporter)
    return Evaluation(
        speaker.name,
        {speaker.name: {key: rate.to_json() for key, rate in rates.items()}},
        {key: [asdict(sample) for sample in rate.samples] for key, rate in rates.items()},
    )


def _finish(path: Any, settings: Settings, reporter: Reporter | None) -> None:
    model = fingerprint(settings.model)
    with RunDirectory.open(path, settings=settings, model=model) as run:
        Pipeline(run, reporter).run_all()


def _stored_samples(run: RunDirectory, name: str) -> dict[str, list[dict[str, Any]]]:
    files = sorted((run.path / "eval" / "samples").glob(f"{name}-*.jsonl"))
    return {
        file.stem.removeprefix(f"{name}-"): [
            json.loads(line) for line in file.read_text("utf-8").splitlines()
        ]
        for file in files
    }
