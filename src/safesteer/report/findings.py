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

    `results` is {model: {benchmark: entry of eval/MODEL.json}}, `samples` is {prompt set: {model:
    rows of eval/samples}}, `steps` holds the lines of train/metrics.jsonl.
    """

    run: RunDirectory  # settings and manifest
    direction: dict[str, Any] | None = None  # direction/direction.json
    tokens: dict[str, Any] | None = None  # tokens/safety_tokens.json
    steps: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    measurements: dict[str, Any] | None = None  # report/measurements.json
    stale: list[str] = field(default_factory=list)  # stages older than those before them

    @property
    def full(self) -> bool:
        """Whether all weights were trained, and not an adapter."""
        return self.run.settings.train.method == "full"


def read_findings(run: RunDirectory) -> Findings:
    """Read what `run` holds so far; InputError names a damaged file."""
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
