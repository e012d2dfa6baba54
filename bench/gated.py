"""A student whose adapter is on only for requests that the base itself takes for harmful.

    python bench/gated.py ADAPTER [ADAPTER ...] [--layer 14] [--scales 1,1.25] [--average]
        [--false-alarms 0.02,0.05,0.1] [--limit 50] [--test] [--data-dir DIR --benchmarks a,b]

ADAPTERs are folders of one recipe's adapters of the built-in model, one for each seed
(RUN/adapter, or what bench/methods.py keeps of each method). Whether a request is
harmful is said by a logistic regression on what the *base* computes over its tokens
(bench/recognition.py), fitted on four fifths of our training prompts; the last fifth says how
strongly it is held back, and at which odds it takes a given share of the harmless and borderline
ones for harmful (one fifth for both, so that the share is a little low). Where it says no, the
base answers, word for word as before, and agreement is 1 by construction. The Markdown table
gives what is refused of our validation prompts (of our test prompts with --test) and of the
benchmarks, and how often the next token is the base's on answers to harmless prompts (the first
evaluate.drift_prompts of ours, and of alpaca's where that is among the benchmarks); means and
standard deviations over the adapters.
*everywhere*: no gate. *gate alone*: what it takes for harmful. With --average one more student is
judged: the mean of what the adapters change, by itself.

What this is: the two halves of the problem, telling and refusing, taken apart. A server can choose
an adapter for each request; weights that were merged cannot.
"""

from __future__ import annotations

import argparse
import sys
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
from safesteer.config.load import load_settings
from safesteer.errors import InputError
from safesteer.evaluate.drift import drift_by_prompt
from safesteer.evaluate.suite import Suite
from safesteer.inference.variant import ModelVariant
from safesteer.models.layers import find_blocks
from safesteer.models.load import ChatModel, load_model
from safesteer.models.lora_dtype import compute_in_model_dtype
from safesteer.prompts import load_prompt_sets

EVERYWHERE = "everywhere"


def refusals(suite: Suite, model: ChatModel, runner: Any) -> dict[str, np.ndarray]:
    """{benchmark: whether each of its prompts is refused}."""
    with tempfile.TemporaryDirectory() as work:
        (found,) = suite.measure([ModelVariant("model", model, runner)], Path(work)).values()
    return {
        name: np.array([sample.refused for sample in rate.samples]) for name, rate in found.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--layer", type=int, default=14, help="whose input the gate looks at")
    parser.add_argument("--scales", default="1,1.25", help="of the adapters, as bench/frontier.py")
    parser.add_argument("--average", action="store_true", help="their mean as one more student")
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
    asked = {one.name: [i.prompt.messages for i in one.items] for one in suite.benchmarks}
    texts = {"agreement": [p.messages for p in sets["harmless"].test]}
    if "alpaca" in asked:
        texts["agreement, alpaca"] = asked["alpaca"]
    texts = {name: each[: settings.evaluate.drift_prompts] for name, each in texts.items()}
    scores = {name: gate.scores(each) for name, each in (asked | texts).items()}
    base = refusals(suite, model, model.model)
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}

    def judge(who: str, student: Any, scale: str) -> None:
        refused = refusals(suite, model, student)
        longest = settings.evaluate.max_new_tokens
        same = {
            name: np.array(drift_by_prompt(model, student, each, max_new_tokens=longest).pairs)[
                :, 0
            ]
            for name, each in texts.items()
        }
        for share in (EVERYWHERE, *map(str, alarms)):
            bound = -np.inf if share == EVERYWHERE else gate.bound(float(share))
            row = {
                name: float(np.where(scores[name] > bound, each, base.get(name, 1.0)).mean())
                for name, each in (refused | same).items()
            }
            found.setdefault((who, scale, share), []).append(row)
            print(f"{who} x{scale}, {share}: {row}", file=sys.stderr, flush=True)

    student: Any = None
    # A variant takes its identity from the adapter of this name; no cache outlives a student here.
    names = ["default", *(f"other{index}" for index in range(1, len(arguments.adapters)))]
    for name, folder in zip(names, arguments.adapters, strict=True):
        if student is None:
            student = PeftModel.from_pretrained(model.model, folder, adapter_name=name)
        else:
            student.load_adapter(folder, adapter_name=name)
    kinds = dict.fromkeys(names, "each")
    if arguments.average:
        # The factors one below the other, so that their product is the mean of the products.
        weights = [1 / len(names)] * len(names)
        student.add_weighted_adapter(names, weights, "average", combination_type="cat")
        kinds["average"] = "average"
    compute_in_model_dtype(student.eval())
    for name, kind in kinds.items():
        student.set_adapter(name)
        for scale in arguments.scales.split(","):
            with rescale_adapter_scale(student, float(scale)):
                judge(kind, student, scale)
    columns = [*base, *texts]
    print("| student | scale | gate's false alarms | " + " | ".join(columns) + " |")
    print("|---|---|---|" + "---|" * len(columns))
    lines = {("the base", "", ""): [{name: float(each.mean()) for name, each in base.items()}]}
    for share in alarms:
        lines["gate alone", "", f"{share:g}"] = [
            {name: float((scores[name] > gate.bound(share)).mean()) for name in base}
        ]
    for key, rows in (lines | found).items():
        cells = [
            cell([row[name] for row in rows], percent=True) if name in rows[0] else ""
            for name in columns
        ]
        print("| " + " | ".join([*key, *cells]) + " |")


if __name__ == "__main__":
    main()
