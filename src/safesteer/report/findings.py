"""The findings of a run: the result files of its finished stages, read once, as they were written.

Only reads files: no model is loaded, no lock is taken, nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from safesteer.evaluate.stored import read_results, read_rows, read_samples, set_order
from safesteer.files import read_json
from safesteer.runs.artifacts import REPAIRS
from safesteer.runs.directory import RunDirectory

MEASUREMENTS = "report/measurements.json"


@dataclass
class Findings:
    """The content of a run.

    `results` is {model: {benchmark: entry of eval/MODEL.json}}, `samples` is {prompt set: {model:
    rows of eval/samples}}, `steps` holds the lines of train/metrics.jsonl.
    """

    run: RunDirectory  # settings and manifest
    direction: dict[str, Any] | None = None  # direction/direction.json
    tokens: dict[str, Any] | None = None  # tokens/safety_tokens.json
    repairs: dict[str, Any] | None = None  # repairs/repairs.json
    steps: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    measurements: dict[str, Any] | None = None  # report/measurements.json
    stale: list[str] = field(default_factory=list)  # stages older than those before them
    incomplete: str = ""  # verdicts that the evaluation lacks, and why

    @property
    def full(self) -> bool:
        """Whether all weights were trained, and not an adapter."""
        return self.run.settings.train.method == "full"


def read_findings(run: RunDirectory) -> Findings:
    """Read what the finished stages of `run` wrote, and the steps of an unfinished training.

    Raises:
        InputError: a file is missing, or was changed since it was written.
    """
    folder, done = run.path, run.output_hashes
    evaluated = done("evaluate", incomplete=True)
    evaluation = run.manifest["stages"].get("evaluate")
    repairs = run.settings.train.wrong_refusals == "repair" and done("repairs")
    run.check_outputs("direction", "tokens", "evaluate", *(["repairs"] if repairs else []))
    run.check_outputs("train", only=("train/",))  # and not the weights, which nobody reads here
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for model, by_set in read_samples(folder).items() if evaluated else ():
        for name, rows in by_set.items():
            samples.setdefault(name, {})[model] = rows
    measured = folder / MEASUREMENTS
    if measured.is_file():  # not while they are made anew
        run.check_outputs("report")
    return Findings(
        run,
        direction=read_json(folder / "direction/direction.json") if done("direction") else None,
        tokens=read_json(folder / "tokens/safety_tokens.json") if done("tokens") else None,
        repairs=read_json(folder / REPAIRS) if repairs else None,
        steps=read_rows(folder / "train" / "metrics.jsonl"),
        results=read_results(folder) if evaluated else {},
        samples={name: samples[name] for name in sorted(samples, key=set_order)},
        measurements=read_json(measured) if done("report") and measured.is_file() else None,
        stale=_stale(run),
        incomplete=evaluation.get("problem", "") if evaluation else "",
    )


def _stale(run: RunDirectory) -> list[str]:
    stages = run.manifest["stages"]
    return [
        name
        for name, entry in stages.items()
        if any(
            earlier in entry["inputs"] and entry["inputs"][earlier] != run.output_hashes(earlier)
            for earlier in stages
            if earlier != name
            and isinstance(entry["inputs"].get(earlier), dict)
            and run.output_hashes(earlier)
        )
    ]
