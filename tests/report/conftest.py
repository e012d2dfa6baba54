"""Runs on the disk that no model made: every file of the contract, small, and hostile in places."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import plain

from safesteer.config.load import load_settings
from safesteer.evaluate.statistics import wilson_interval
from safesteer.files import write_json, write_jsonl
from safesteer.inference import VARIANTS
from safesteer.report.findings import MEASUREMENTS
from safesteer.runs.directory import RunDirectory

sys.path.insert(0, str(Path(__file__).parent))

# What a model could write to break a page: markup, attributes, marks that reorder text, halves of
# surrogate pairs, control characters.
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    "\" onmouseover='alert(2)' {{ 7 * 7 }} ]]> --> \u202egnp.exe\u2066 \ud800 \x00\x1b[31m"
)
MODEL = {"id": "owner/some-chat-model", "revision": "abc123", "sha256": "0" * 64}


def entry(refused: int, n: int, kind: str, **more: Any) -> dict[str, Any]:
    """An entry of eval/*.json for refusals."""
    return {
        "metric": "refusal_rate", "value": refused / n, "ci95": list(wilson_interval(refused, n)),
        "n": n, "judge": "offline-refusal", "kind": kind, "looping": 0.0, **more,
    }  # fmt: skip


def rows(set_name: str, refused: int, n: int, text: str = "An answer.") -> list[dict[str, Any]]:
    """Rows of eval/samples; the first `refused` are refusals."""
    return [
        {
            "id": f"{set_name}-{index}", "category": "some",
            "prompt": f"{set_name} prompt {index}?",
            "completion": f"{text} ({index})", "refused": index < refused, "score": 0.5,
            "looping": index == n - 1, **({"cut": True} if index == 0 else {}),
        }
        for index in range(n)
    ]  # fmt: skip


def measurements(tokens: list[int], text: str) -> dict[str, Any]:
    """report/measurements.json as `measure` makes it."""
    points = [[float(i), float(i % 3)] for i in range(6)]

    def moved(by: float) -> dict[str, list[list[float]]]:
        return {
            "harmful": [[x + 10 + by, y] for x, y in points],
            "harmless": [[x + by / 4, y] for x, y in points],
        }

    shift = {name: {"shift": 0.5, "cosine": 0.9} for name in ("harmful", "harmless")}
    return {
        "tokens": {
            "set": "harmful", "prompts": 2, "positions": 9, "ids": tokens,
            "p": {m: [0.1 / (1 + i) for i in range(len(tokens))] for m in VARIANTS},
            "mass": {"base": 0.2, "aligned": 0.4, "teacher": 0.6},
        },
        "rollouts": [
            {
                "set": name, "prompt": f"{name} rollout?", "variant": variant, "reference": against,
                "tokens": ["I", " can", "'t\n", "", text], "kl": [0.0, 0.1, 0.02, 0.4, 0.003],
                "p": [0.5] * 5, "p_reference": [0.25] * 5,
            }
            for name, variant, against in (
                ("harmful", "base", "teacher"), ("harmful", "aligned", "teacher"),
                ("harmless", "aligned", "base"),
            )
        ],
        "states": [
            {
                "place": place, "layer": layer, "explained": [0.5, 0.2], "shift": shift,
                "points": {"base": moved(0.0), "teacher": moved(8.0), "aligned": moved(4.0)},
            }
            for place, layer in (("layer", 2), ("output", 4))
        ],
    }  # fmt: skip


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., RunDirectory]:
    """Writes a run; `until` is its last finished stage, `text` what the models say."""

    def make(
        name: str = "run",
        until: str = "report",
        text: str = "An answer.",
        refused: tuple[int, int, int] = (16, 3, 1),  # of harmful, harmless, borderline
        n: int = 20,
        model: dict[str, Any] | None = None,
        benchmarks: dict[str, dict[str, Any]] | None = None,
        **sections: Any,
    ) -> RunDirectory:
        identity = model or MODEL
        sections["model"] = {"id": identity["id"], **sections.get("model", {})}
        settings = load_settings(**plain(**sections))
        path = tmp_path / name
        order = ("direction", "tokens", "train", "evaluate", "report")
        with RunDirectory.open(path, settings=settings, model=identity) as run:
            for stage in order[: order.index(until) + 1]:
                with run.stage(stage, {"prompts": {}}) as record:
                    for file in FILES[stage](path, text, refused, n, benchmarks or {}):
                        record.add_output(file)
        return RunDirectory.load(path)

    return make


def _direction(path: Path, text: str, *_: Any) -> list[Path]:
    def score(layer: int, position: int, rejected: str = "") -> dict[str, Any]:
        return {
            "method": "harmful-harmless", "layer": layer, "position": position, "coefficient": 1.0,
            "norm": 3.0, "ablation": layer - position * 0.5, "addition": 0.3 * layer, "kl": 0.01,
            "flip_rate": None, "harmless_refusals": None, "perplexity_ratio": None, "loops": None,
            "rejected": rejected,
        }  # fmt: skip

    scores = [score(layer, position) for layer in range(1, 4) for position in (-1, -2)]
    scores += [score(3, -3, "KL 0.2 over 0.1"), score(2, -3, "KL 0.3 over 0.1")]
    content = {
        "method": "harmful-harmless", "layer": 2, "position": -1, "coefficient": 1.0, "norm": 3.0,
        "qualified": True, "notes": [f"a note {text}"], "scores": scores,
    }  # fmt: skip
    write_json(path / "direction" / "direction.json", content)
    return [path / "direction" / "direction.json"]


def _tokens(path: Path, text: str, *_: Any) -> list[Path]:
    tokens = [
        {"id": i, "text": [" I", "\n", " ", text][i % 4], "votes": 9 - i % 9, "mass": 3.0 / (1 + i),
         "p_base": 0.001 * i, "p_teacher": 0.01 * i}
        for i in range(30)
    ]  # fmt: skip
    content = {
        "method": "mass", "tokens": tokens, "coverage": 0.6, "positions": 99, "prompts": "harmful",
        "num_prompts": 4, "horizon": 7, "num_generations": 2, "votes_per_position": 200,
        "end_of_turn": True, "min_teacher_prob": 1e-8,
    }  # fmt: skip
    write_json(path / "tokens" / "safety_tokens.json", content)
    return [path / "tokens" / "safety_tokens.json"]


def _train(path: Path, *_: Any) -> list[Path]:
    updates = [
        {
            "step": i, "loss": 1.0 / i, "grad_norm": 0.1, "lr": 1e-3, "mass_student": 0.4,
            "mass_teacher": 0.5, "entropy": 2.0, "completion_length": 16.0,
            "refusal_rate": None if i % 3 else 0.5, "anchor_refusal_rate": 0.0,
            "tokens_per_second": 30.0, "seconds": {"rollout": 1.0, "student": 2.0},
        }
        for i in range(1, 31)
    ]  # fmt: skip
    write_jsonl(path / "train" / "metrics.jsonl", updates)
    return [path / "train" / "metrics.jsonl"]


def _evaluate(
    path: Path, text: str, refused: tuple[int, int, int], n: int, more: dict[str, Any]
) -> list[Path]:
    files = []
    sets = ("harmful", "harmless", "borderline")
    counts = {"base": (1, 0, 1), "aligned": refused, "teacher": (n, n - 1, n)}
    for model, by_set in counts.items():
        benchmarks: dict[str, Any] = {}
        for name, count in zip(sets, by_set, strict=True):
            kind = "safety" if name == "harmful" else "over_refusal"
            ended = {"refusals": count, "refusals_ended": (count - 1) / count} if count else {}
            benchmarks[name] = entry(count, n, kind, **ended)
            files.append(path / "eval" / "samples" / f"{model}-{name}.jsonl")
            write_jsonl(files[-1], rows(name, count, n, text))
        if model == "aligned":
            drift = {"n": n, "judge": None, "kind": "capability"}
            benchmarks["agreement"] = {
                "metric": "next_token_agreement", "value": 0.95, "ci95": [0.94, 0.96], **drift,
            }  # fmt: skip
            benchmarks["divergence"] = {
                "metric": "kl_base_aligned", "value": 0.01, "ci95": [0.008, 0.012], **drift,
            }  # fmt: skip
        benchmarks |= more.get(model, {})
        files.append(path / "eval" / f"{model}.json")
        write_json(files[-1], {"model": model, "benchmarks": benchmarks})
    return files


def _report(path: Path, text: str, *_: Any) -> list[Path]:
    write_json(path / MEASUREMENTS, measurements(list(range(30)), text))
    return [path / MEASUREMENTS]


FILES: dict[str, Callable[..., list[Path]]] = {
    "direction": _direction,
    "tokens": _tokens,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
}


@pytest.fixture
def judged() -> dict[str, dict[str, Any]]:
    """Further benchmarks: attacks under two judges, and accuracy."""

    def attacks(value: float, **more: Any) -> dict[str, Any]:
        return {
            "metric": "attack_success_rate", "value": value, "ci95": [value - 0.05, value + 0.05],
            "n": 50, "judge": "guard", "kind": "safety", "disagreement": 0.1,
            "judges": {
                "guard": {"value": value, "ci95": [0.1, 0.3], "n": 50, "no_verdict": 2},
                "offline-refusal": {"value": value + 0.1, "ci95": [0.1, 0.4], "n": 50},
            },
            **more,
        }  # fmt: skip

    accuracy = {"metric": "accuracy", "value": 0.4, "ci95": [0.3, 0.5], "n": 80, "judge": None,
                "kind": "capability"}  # fmt: skip
    versus = {"value": -0.4, "ci95": [-0.5, -0.3], "p": 1e-4, "n": 50,
              "words": "-40.0 points (95% -50 to -30, n = 50, p < 0.001)"}  # fmt: skip
    return {
        "base": {"harmbench": attacks(0.6), "mmlu": accuracy},
        "aligned": {"harmbench": attacks(0.2, versus_base=versus), "mmlu": accuracy},
    }


@pytest.fixture
def hostile() -> str:
    """An answer that tries to break the page."""
    return HOSTILE


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium (apt-get install chromium); tests that use it are skipped without it."""
    from browser import PATH, Browser

    if PATH is None:
        pytest.skip("there is no Chromium here")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
