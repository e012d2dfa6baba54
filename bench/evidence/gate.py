"""A gate: the adapter is on only for requests that a linear probe classifies as harmful.

    python -m bench.evidence gate ADAPTER [ADAPTER ...] [--layer 14] [--scales 1,1.25] [--average]
        [--false-positives 0.02,0.05,0.1] [--limit 50] [--test]
        [--data-dir DIR --benchmarks a,b]

ADAPTERs are adapter folders of one recipe for the built-in model, one per seed (RUN/adapter, or
those that `bench.methods` keeps). The probe reads the *base* model's activations over the request
(see `probe`). It is fitted on four fifths of our training prompts; the last fifth chooses its
penalty and the thresholds with the given false positive rates, so that these are a little low.
Below the threshold the base answers, unchanged, and agreement is 1 by construction.

Prints the share refused of our validation prompts (with --test of our test prompts) and of the
benchmarks, and next-token agreement with the base on harmless prompts (the first
evaluate.drift_prompts of ours, and of alpaca if it is among the benchmarks): means and standard
deviations over the adapters. *everywhere*: no gate. *gate alone*: the share above the threshold.
--average adds one more student, whose weight change is the mean of the adapters'.

A server can choose an adapter for each request; weights that were merged cannot.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from peft.helpers import rescale_adapter_scale

from bench.command_line import names
from bench.evidence.probe import Probe, check_layers
from bench.inputs import OWN, of_benchmarks, with_validation_prompts
from bench.tables import mean_and_deviation, table_head, table_row
from safesteer.config.load import load_settings
from safesteer.config.settings import Settings
from safesteer.errors import InputError
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.suite import Suite
from safesteer.inference.variant import ModelVariant
from safesteer.models.chat import Message
from safesteer.models.load import ChatModel, load_model
from safesteer.models.lora_dtype import compute_in_model_dtype
from safesteer.prompts import PromptSet, load_prompt_sets

EVERYWHERE = "everywhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--layer", type=int, default=14, help="whose input the probe reads")
    parser.add_argument("--scales", default="1,1.25", help="factors on the adapters")
    parser.add_argument("--average", action="store_true", help="their mean as one more student")
    parser.add_argument("--false-positives", default="0.02,0.05,0.1")
    parser.add_argument("--limit", type=int, default=50, help="prompts of each kind")
    parser.add_argument("--test", action="store_true", help="our test prompts: for reporting")
    parser.add_argument("--data-dir", help="files of --benchmarks")
    parser.add_argument("--benchmarks", default="")


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    rates = [float(share) for share in names(arguments.false_positives)]
    overrides = of_benchmarks(arguments.limit, arguments.data_dir)
    settings = load_settings("smollm2-135m", overrides)
    sets = load_prompt_sets(settings.prompts, 0)
    train = {name: [p.messages for p in found.train] for name, found in sets.items()}
    sets = sets if arguments.test else with_validation_prompts(sets)
    suite = plan(settings, sets, names(arguments.benchmarks))
    model = load_model(settings.model)
    check_layers(model, [arguments.layer])
    study = Study(suite, sets, Probe(model, arguments.layer, train))
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for kind, student in students(model, arguments.adapters, arguments.average):
        for scale in names(arguments.scales):
            with rescale_adapter_scale(student, float(scale)):
                for rate, shares in study.judge(student, rates).items():
                    found.setdefault((kind, scale, rate), []).append(shares)
                    print(f"{kind} x{scale}, {rate}: {shares}", file=sys.stderr, flush=True)
    columns = [*study.base, *study.drift_prompts]
    print(table_head("student", "scale", "false positives", *columns))
    lines = {("the base", "", ""): [{name: each.mean() for name, each in study.base.items()}]}
    for rate in rates:
        lines["gate alone", "", f"{rate:g}"] = [study.gate_alone(rate)]
    for key, rows in (lines | found).items():
        cells = [mean_and_deviation([one.get(name) for one in rows]) for name in columns]
        print(table_row(*key, *cells))


def plan(settings: Settings, sets: Mapping[str, PromptSet], benchmarks: Sequence[str]) -> Suite:
    """Our own sets and the benchmarks, ready to be asked.

    Raises:
        InputError: a benchmark is unknown, its file is missing, or it measures no refusals.
    """
    with tempfile.TemporaryDirectory() as cache:
        suite = Suite.plan([*OWN, *benchmarks], settings, sets, Path(cache))
    for loaded in suite.benchmarks:
        if loaded.benchmark.harness is not None:
            raise InputError(f"{loaded.name} measures no refusals. Try: other --benchmarks")
    suite.prepare()
    return suite


class Study:
    """The probe's scores, and the base's refusals, of everything that students are asked.

    Args:
        suite: our own sets and the benchmarks.
        sets: our own sets, for drift.
        probe: the fitted probe with the base model, to which no adapter was added yet.

    Attributes:
        base: {benchmark: whether the base refuses each prompt}.
        drift_prompts: {column: harmless prompts}.
    """

    def __init__(self, suite: Suite, sets: Mapping[str, PromptSet], probe: Probe) -> None:
        self.suite, self.probe, self.model = suite, probe, probe.model
        asked = {one.name: [i.prompt.messages for i in one.items] for one in suite.benchmarks}
        texts = {"agreement": [p.messages for p in sets["harmless"].test]}
        if "alpaca" in asked:
            texts["agreement, alpaca"] = asked["alpaca"]
        most = suite.settings.evaluate.drift_prompts
        self.drift_prompts: dict[str, list[Sequence[Message]]] = {
            name: each[:most] for name, each in texts.items()
        }
        self.scores = {
            name: probe.scores(each) for name, each in (asked | self.drift_prompts).items()
        }
        self.base = self.refusals(self.model.model)

    def refusals(self, runner: Any) -> dict[str, np.ndarray]:
        """{benchmark: whether each of its prompts is refused}."""
        with tempfile.TemporaryDirectory() as cache:
            variant = ModelVariant("model", self.model, runner)
            (found,) = self.suite.measure([variant], Path(cache)).values()
        return {
            name: np.array([sample.refused for sample in rate.samples])
            for name, rate in found.items()
        }

    def agreement(self, student: Any) -> dict[str, np.ndarray]:
        """{column: next-token agreement with the base on each of its prompts}."""
        longest = self.suite.settings.evaluate.max_new_tokens
        drifts = {
            name: measure_drift(self.model, student, each, max_new_tokens=longest)
            for name, each in self.drift_prompts.items()
        }
        return {name: np.array(drift.pairs)[:, 0] for name, drift in drifts.items()}

    def judge(self, student: Any, rates: Sequence[float]) -> dict[str, dict[str, float]]:
        """{false positive rate: {column: share}}, without a gate and at each rate."""
        found = self.refusals(student) | self.agreement(student)
        thresholds = {EVERYWHERE: -np.inf} | {str(r): self.probe.threshold(r) for r in rates}
        return {
            rate: {
                name: float(
                    np.where(self.scores[name] > threshold, each, self.base.get(name, 1.0)).mean()
                )
                for name, each in found.items()
            }
            for rate, threshold in thresholds.items()
        }

    def gate_alone(self, rate: float) -> dict[str, float]:
        """{benchmark: share of its prompts that the probe classifies as harmful}."""
        threshold = self.probe.threshold(rate)
        return {name: float((self.scores[name] > threshold).mean()) for name in self.base}


def students(
    model: ChatModel, adapters: Sequence[Path], average: bool
) -> Iterator[tuple[str, Any]]:
    """("each", student) for every adapter; with `average` also ("average", their mean)."""
    # A variant takes its identity from the adapter named default; no cache outlives a student here.
    labels = ["default", *(f"other{index}" for index in range(1, len(adapters)))]
    student = PeftModel.from_pretrained(model.model, adapters[0], adapter_name=labels[0])
    for label, folder in zip(labels[1:], adapters[1:], strict=True):
        student.load_adapter(folder, adapter_name=label)
    kinds = dict.fromkeys(labels, "each")
    if average:
        # Stacked factors, so that their product is the mean of the products.
        weights = [1 / len(labels)] * len(labels)
        student.add_weighted_adapter(labels, weights, "average", combination_type="cat")
        kinds["average"] = "average"
    compute_in_model_dtype(student.eval())
    for label, kind in kinds.items():
        student.set_adapter(label)
        yield kind, student
