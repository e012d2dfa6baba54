"""Prompts of no earlier sample: the requests of a file that no benchmark's file holds.

    python -m bench.evidence unseen FILE --data-dir DIR > rest.json

Prints those requests of FILE, a file of prompts, as a JSON list, for `safesteer eval RUN
--benchmarks refusal-direction --set evaluate.advanced.sources.refusal-direction=rest.json`.

`python -m bench.evidence benchmarks --leave-out` uses the same for samples. An evenly spaced sample
of a file is always the same, so an earlier sample is named by its limit. Files share requests
(harmful_val is made of others, HarmBench among them), so texts are compared over all files, not
positions in one. Near-duplicates are not looked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

from bench.inputs import OWN, of_benchmarks
from safesteer.config.load import load_settings
from safesteer.config.settings import EvaluateSettings
from safesteer.evaluate.benchmarks import BENCHMARKS, Benchmark, load_benchmarks
from safesteer.evaluate.benchmarks.sources import Loaded, evenly, found_files
from safesteer.prompts.load import load_prompts


def with_files(settings: EvaluateSettings) -> list[Benchmark]:
    """The benchmarks whose files lie in `settings.data_dir`, except win rates."""
    assert settings.data_dir is not None
    return [
        entry
        for entry in BENCHMARKS
        if entry.metric != "win_rate" and found_files(entry, settings.data_dir)
    ]


def seen_texts(settings: EvaluateSettings, limits: Sequence[int | None]) -> set[str]:
    """The requests in a sample of any of `limits`, from every file in `settings.data_dir`.

    A limit of None takes the whole file.
    """
    names = [entry.name for entry in with_files(settings) if entry.harness is None]
    every = load_benchmarks(names, settings.model_copy(update={"limit": None}), {})
    return {
        _plain(loaded.items[place].request)
        for loaded in every
        for limit in limits
        for place in evenly(len(loaded.items), limit)
    }


def unseen(loaded: Loaded, limit: int | None, seen: set[str], settings: EvaluateSettings) -> Loaded:
    """A benchmark with `limit` prompts, evenly spaced over those not in `seen`; perhaps none.

    Args:
        loaded: the benchmark with all prompts of its file.
        limit: the number of prompts; not applied to our own sets.
        seen: requests of earlier samples, as `seen_texts` returns them.
        settings: those of the run. Of our own sets all test prompts remain that it did not use.

    Returns:
        The benchmark with the remaining prompts. Capability benchmarks stay as they are.
    """
    if loaded.benchmark.harness is not None:
        return loaded
    if loaded.name in OWN:
        asked = settings.limit if settings.limit is not None else len(loaded.items)
        if loaded.name == "harmless":
            asked = max(asked, settings.drift_prompts)
        return replace(loaded, items=loaded.items[asked:])
    rest = [item for item in loaded.items if _plain(item.request) not in seen]
    return replace(loaded, items=[rest[place] for place in evenly(len(rest), limit)])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".?!")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file")
    parser.add_argument("--data-dir", required=True)


def run(arguments: argparse.Namespace) -> None:
    """Print the requests that no benchmark's file holds."""
    settings = load_settings("smollm2-135m", of_benchmarks(None, arguments.data_dir))
    seen = seen_texts(settings.evaluate, [None])
    texts = [prompt.text for prompt in load_prompts(arguments.file)]
    print(json.dumps([text for text in texts if _plain(text) not in seen], indent=1))
