"""The findings of a run: its result files, read once; missing ones stay empty.

Only reads files: no model is loaded, no lock is taken, nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safesteer.evaluate.stored import read_results, read_rows, read_samples, set_order
from safesteer.files import read_json
from safesteer.runs.directory import RunDirectory

MEASUREMENTS = "report/measurements.json"


@dataclass
class Findings:
    """The content of a run.

    Attributes:
        run: settings and manifest.
        direction: direction/direction.json.
        tokens: tokens/safety_tokens.json.
        steps: lines of train/metrics.jsonl, one per training step.
        results: {base, aligned, teacher: {benchmark: entry of eval/MODEL.json}}.
        samples: {prompt set: {model: rows}} of eval/samples.
        measurements: report/measurements.json.
        stale: stages made from earlier versions of the stages before them.
    """

    run: RunDirectory
    direction: dict[str, Any] | None = None
    tokens: dict[str, Any] | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    measurements: dict[str, Any] | None = None
    stale: list[str] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether all weights were trained, and not an adapter."""
        return self.run.settings.train.method == "full"


def read_findings(run: RunDirectory) -> Findings:
    """Read what `run` holds so far.

    Raises InputError, naming the file, for a damaged one.
    """
    folder = run.path
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for model, by_set in read_samples(folder).items():
        for name, rows in by_set.items():
            samples.setdefault(name, {})[model] = rows
    return Findings(
        run,
        direction=_json(folder / "direction" / "direction.json"),
        tokens=_json(folder / "tokens" / "safety_tokens.json"),
        steps=read_rows(folder / "train" / "metrics.jsonl"),
        results=read_results(folder),
        samples={name: samples[name] for name in sorted(samples, key=set_order)},
        measurements=_json(folder / MEASUREMENTS),
        stale=_stale(run),
    )


def _json(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


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
