"""Prompts that were not asked before: what the samples of given limits leave over.

    python bench/untouched.py FILE --data-dir DIR > rest.json

prints those requests of FILE, a file of prompts, that no benchmark's file below DIR holds, for
`safesteer eval RUN --benchmarks refusal-direction --set
evaluate.sources.refusal-direction=rest.json`.

For figures of prompts touched once (`bench/evidence.py --leave-out`). An evenly spaced sample of a
file is the same each time, so that what was asked with `--limit 50` can be named by its limit.
Files share requests (harmful_val is made of others, HarmBench among them), so texts are compared
over all files at hand, not places in one; near-duplicates are not looked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

from safesteer.config.load import load_settings
from safesteer.config.settings import EvaluateSettings
from safesteer.errors import InputError
from safesteer.evaluate.benchmarks import BENCHMARKS, Benchmark, load_benchmarks
from safesteer.evaluate.benchmarks.sources import Loaded, evenly, found_files
from safesteer.prompts.load import load_prompts

OWN = ("harmful", "harmful+prefill", "harmless", "borderline")


def with_files(settings: EvaluateSettings) -> list[Benchmark]:
    """The benchmarks whose files lie in `settings.data_dir`, but for win rates."""
    assert settings.data_dir is not None
    return [
        entry
        for entry in BENCHMARKS
        if entry.metric != "win_rate" and found_files(entry, settings.data_dir)
    ]


def seen_texts(settings: EvaluateSettings, limits: Sequence[int | None]) -> set[str]:
    """The requests that a sample of any of `limits` holds, of every file of `settings.data_dir`.

    None is all of a file.
    """
    names = [entry.name for entry in with_files(settings) if entry.harness is None]
    every = load_benchmarks(names, settings.model_copy(update={"limit": None}), {})
    return {
        _plain(loaded.items[place].request)
        for loaded in every
        for limit in limits
        for place in evenly(len(loaded.items), limit)
    }


def untouched(
    loaded: Loaded, limit: int | None, seen: set[str], settings: EvaluateSettings
) -> Loaded:
    """`limit` prompts of a file, evenly spaced over those not in `seen`; perhaps none.

    `loaded` holds all of a file. Of our own sets the rest behind the test prompts that a run with
    these `settings` asks, however many. Questions of a capability stay as they are.
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


def main() -> None:
    """Print the requests that no benchmark's file holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("file")
    parser.add_argument("--data-dir", required=True)
    arguments = parser.parse_args()
    overrides = [f"evaluate.data_dir={arguments.data_dir}"]
    try:
        seen = seen_texts(load_settings("smollm2-135m", overrides).evaluate, [None])
        texts = [prompt.text for prompt in load_prompts(arguments.file)]
    except InputError as error:
        raise SystemExit(str(error)) from None
    print(json.dumps([text for text in texts if _plain(text) not in seen], indent=1))


if __name__ == "__main__":
    main()
