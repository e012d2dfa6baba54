"""A student whose adapter is on only for requests that the base itself takes for harmful.

    python bench/gated.py ADAPTER [ADAPTER ...] [--layer 14] [--scales 1,1.25]
        [--false-alarms 0.02,0.05,0.1] [--limit 50] [--test] [--data-dir DIR --benchmarks a,b]

ADAPTERs are folders of one recipe's adapters of the built-in model, one for each seed
(RUN/adapter, or what bench/methods.py keeps of each method). Whether a request is
harmful is said by a logistic regression on what the *base* computes over its tokens
(bench/recognition.py), fitted on four fifths of our training prompts; the last fifth says how
strongly it is held back, and at which odds it takes a given share of the harmless and borderline
ones for harmful (one fifth for both, so that the share is a little low). Where it says no, the
base answers, word for word as before, and agreement is 1 by construction. The Markdown table
gives what is refused of our validation prompts (of our test prompts with --test) and of the
benchmarks, and how often the next token is the base's on answers to harmless prompts; means and
standard deviations over the adapters. *everywhere*: no gate. *gate alone*: what it takes for
harmful.

What this is: the two halves of the problem, telling and refusing, taken apart. A server can choose
an adapter for each request; weights that were merged cannot.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from frontier import RATES, cell
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from recognition import Gate

from safesteer.cli.silence import silence_libraries
from safesteer.errors import InputError
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.suite import Suite
from safesteer.models.adapters import compute_in_model_dtype
from safesteer.models.layers import find_blocks
from safesteer.models.load import ChatModel, load_model
from safesteer.prompts import load_prompt_sets
from safesteer.recipe import load_settings
from safesteer.speaker import Speaker

EVERYWHERE = "everywhere"


def refusals(suite: Suite, model: ChatModel, runner: Any) -> dict[str, np.ndarray]:
    """{benchmark: whether each of its prompts is refused}."""
    with tempfile.TemporaryDirectory() as work:
        (found,) = suite.measure([Speaker("model", model, runner)], Path(work)).values()
    return {
        name: np.array([sample.refused for sample in rate.samples]) for name, rate in found.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--layer", type=int, default=14, help="whose input the gate looks at")
    parser.add_argument("--scales", default="1,1.25", help="of the adapters, as bench/frontier.py")
    parser.add_argument("--false-alarms", default="0.02,0.05,0.1")
    parser.add_argument("--limit", type=int, default=50, help="prompts of each kind")
    parser.add_argument("--test", action="store_true", help="our test prompts: for reporting")
    parser.add_argument("--data-dir", help="files of --benchmarks")
    parser.add_argument("--benchmarks", default="")
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    overrides = [f"evaluate.limit={arguments.limit}"]
    if arguments.data_dir:
        overrides.append(f"evaluate.data_dir={arguments.data_dir}")
    alarms = [float(share) for share in arguments.false_alarms.split(",")]
    try:
        settings = load_settings("smollm2-135m", overrides)
        sets = load_prompt_sets(settings.prompts, 0)
        train = {name: [p.messages for p in found.train] for name, found in sets.items()}
        if not arguments.test:
            sets = {name: replace(found, test=found.validation) for name, found in sets.items()}
        outside = [name.strip() for name in arguments.benchmarks.split(",") if name.strip()]
        with tempfile.TemporaryDirectory() as cache:
            suite = Suite.plan([*RATES, *outside], settings, sets, Path(cache))
        for loaded in suite.benchmarks:
            if loaded.benchmark.harness is not None:
                raise InputError(f"{loaded.name} asks for no refusal: leave it out of --benchmarks")
        suite.prepare()
        model = load_model(settings.model)
        last = len(find_blocks(model.model)) - 1
        if not 0 <= arguments.layer <= last:
            raise InputError(f"--layer {arguments.layer}: this model's layers are 0 to {last}")
    except InputError as error:
        raise SystemExit(str(error)) from None
    gate = Gate(model, arguments.layer, train)
    scores = {
        loaded.name: gate.scores([item.prompt.messages for item in loaded.items])
        for loaded in suite.benchmarks
    }
    harmless = [prompt.messages for prompt in sets["harmless"].test]
    harmless = harmless[: settings.evaluate.drift_prompts]
    harmless_scores = gate.scores(harmless)
    base = refusals(suite, model, model.model)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for folder in arguments.adapters:
        student: Any = compute_in_model_dtype(PeftModel.from_pretrained(model.model, folder).eval())
        for scale in arguments.scales.split(","):
            with rescale_adapter_scale(student, float(scale)):
                refused = refusals(suite, model, student)
                for share in (EVERYWHERE, *map(str, alarms)):
                    bound = -np.inf if share == EVERYWHERE else gate.bound(float(share))
                    row = {
                        name: float(np.where(scores[name] > bound, each, base[name]).mean())
                        for name, each in refused.items()
                    }
                    asked = [m for m, s in zip(harmless, harmless_scores, strict=True) if s > bound]
                    row["agreement"] = 1.0
                    if asked:
                        drift = measure_drift(
                            model,
                            student,
                            asked,
                            max_new_tokens=settings.evaluate.max_new_tokens,
                        )
                        apart = 1 - drift["agreement"]["value"]
                        row["agreement"] -= apart * len(asked) / len(harmless)
                    found.setdefault((scale, share), []).append(row)
                    print(f"{folder} x{scale}, {share}: {row}", flush=True)
        student.unload()
    columns = [*base, "agreement"]
    print("| scale | gate's false alarms | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    lines = {("", "the base"): [{name: float(each.mean()) for name, each in base.items()}]}
    for share in alarms:
        lines["", f"{share:g}, gate alone"] = [
            {name: float((each > gate.bound(share)).mean()) for name, each in scores.items()}
        ]
    for (scale, share), rows in (lines | found).items():
        cells = [
            cell([row[name] for row in rows], percent=True) if name in rows[0] else ""
            for name in columns
        ]
        print(f"| {scale} | {share} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
