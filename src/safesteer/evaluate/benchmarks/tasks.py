"""lm-eval's stock tasks, reading local files instead of the hub's data sets."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from safesteer.errors import InputError, nearest
from safesteer.evaluate.benchmarks.code import passes
from safesteer.evaluate.benchmarks.entry import Harness
from safesteer.evaluate.benchmarks.sources import Loaded
from safesteer.prompts.readers import read_rows

LETTERS = "ABCD"
# Prefix of the names of tasks that read local files.
LOCAL = "safesteer_"


def harness_of(loaded: Loaded) -> Harness:
    """The lm-eval task of a capability."""
    assert loaded.benchmark.harness is not None
    return loaded.benchmark.harness


def make_tasks(loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Make a capability's {name: lm_eval Task}, with all questions in memory.

    `folder` takes temporary files while the questions are read.
    """
    from lm_eval.tasks import TaskManager

    harness = harness_of(loaded)
    package = importlib.util.find_spec("lm_eval")
    assert package is not None and package.origin is not None
    stock = Path(package.origin).parent / "tasks" / harness.config
    if harness.runs_code:
        return _code_task(loaded, stock, folder)
    if not loaded.files:
        place = stock if stock.is_dir() else stock.parent
        manager = TaskManager(include_path=str(place), include_defaults=False)
        return dict(manager.load([harness.task])["tasks"])
    included = folder / "tasks"
    included.mkdir()
    names = []
    for name, path, files in _parts(loaded, stock, folder):
        config = {"include": str(path), "task": name, **_local_data(files, folder)}
        (included / f"{name}.yaml").write_text(yaml.safe_dump(config), "utf-8")
        names.append(name)
    manager = TaskManager(include_path=str(included), include_defaults=False)
    return dict(manager.load(names)["tasks"])


def _local_data(files: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Task settings that replace the data set by local files."""
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(path.resolve()) for split, path in files.items()},
            # In the temporary folder, so that nothing is left in the user's cache.
            "cache_dir": str(folder / "cache"),
            "keep_in_memory": True,
        },
    }


def _parts(
    loaded: Loaded, stock: Path, folder: Path
) -> Iterator[tuple[str, Path, Mapping[str, Path]]]:  # name, stock task, {split: file}
    """The task, or the tasks of a group: one per subject, with that subject's examples."""
    if stock.is_file():
        yield LOCAL + loaded.name.replace("-", "_"), stock, loaded.files
        return
    by_subject: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for split, path in loaded.files.items():
        for row in read_rows(path):
            values = dict(row.values)
            # Answers are numbers in the hub's copies, letters in others.
            if str(values.get("answer")) in LETTERS:
                values["answer"] = LETTERS.index(str(values["answer"]))
            subject = str(values.get("subject"))
            by_subject.setdefault(subject, {}).setdefault(split, []).append(values)
    known = [path.stem.removeprefix("mmlu_") for path in stock.glob("mmlu_*.yaml")]
    asked = next(iter(loaded.files))
    for subject, splits in sorted(by_subject.items()):
        if asked not in splits:
            continue
        if subject not in known:
            raise InputError(
                f"benchmark {loaded.name}: lm-eval's task has no subject '{subject}'"
                f"{nearest(subject, known)}. Try: correct the column subject"
            )
        for split in loaded.files:
            if split not in splits:
                raise InputError(
                    f"benchmark {loaded.name}: {loaded.files[split]} has no row of the subject"
                    f" {subject}. Try: add some"
                )
        files = {}
        for split, rows in splits.items():
            files[split] = folder / f"{subject}-{split}.jsonl"
            files[split].write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        yield f"{LOCAL}{subject}", stock / f"mmlu_{subject}.yaml", files


class _PlainLoader(yaml.SafeLoader):
    """Loads a task's file without importing the functions that it names."""


_PlainLoader.add_constructor("!function", lambda loader, node: None)


def _code_task(loaded: Loaded, stock: Path, folder: Path) -> dict[str, Any]:
    """HumanEval with the stock prompt and our own runner, since lm-eval downloads its metric."""
    from lm_eval.api.task import ConfigurableTask

    config: dict[str, Any] = {"include": stock.name}
    while "include" in config:
        included = stock.parent / config.pop("include")
        config = {**yaml.load(included.read_text("utf-8"), _PlainLoader), **config}
    config |= {
        "metric_list": [{"metric": passed, "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {
                "name": harness_of(loaded).filter,
                "filter": [{"function": "custom", "filter_fn": _programs}],
            }
        ],
    }
    if loaded.files:
        config |= _local_data(loaded.files, folder)
    task = ConfigurableTask(config=config)
    return {task.task_name: task}


def _programs(responses: list[list[str]], docs: list[Mapping[str, Any]]) -> list[str]:
    """The program of each answer: the prompt's code, then the answer up to a code fence."""
    return [
        doc["prompt"] + texts[0].partition("```")[0]
        for texts, doc in zip(responses, docs, strict=True)
    ]


def passed(references: list[str], predictions: list[str]) -> float:
    """1.0 if the program passes its tests; a metric as lm-eval calls it."""
    return float(passes(predictions[0], references[0]))
