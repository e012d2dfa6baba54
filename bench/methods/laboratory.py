"""Training and judging of one method at a time, on a base that all methods share."""

from __future__ import annotations

import hashlib
import json
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from bench.evidence.solutions import SOLUTIONS, measure_solutions, read_problems
from bench.inputs import OWN, with_validation_prompts
from bench.methods.imitate import imitate
from bench.methods.table import METHODS, Method, settings_of
from safesteer.config.settings import Settings
from safesteer.direction.activations import prompt_means
from safesteer.direction.extract import extract_direction
from safesteer.direction.vector import Direction
from safesteer.distill import train as training
from safesteer.distill.kfac import measure_kfac
from safesteer.distill.plan import TrainingPrompts
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.suite import Suite
from safesteer.files import load_tensors, read_json, save_tensors, write_json
from safesteer.inference.variant import ModelVariant
from safesteer.models.answer_cache import Cache
from safesteer.models.chat import Message
from safesteer.models.load import ChatModel, load_model
from safesteer.models.lora_dtype import compute_in_model_dtype
from safesteer.pipeline.repairs import find_repairs, training_prompts
from safesteer.prompts import load_prompt_sets
from safesteer.report.rows import repair_lines
from safesteer.runs.system import MemorySampler, versions
from safesteer.safety_tokens import select_safety_tokens
from safesteer.teacher import Teacher, make_teacher

Conversation = Sequence[Message]


@dataclass
class Laboratory:
    """The base model, prompts and directions that all methods share.

    Attributes:
        output: the folder of the sweep.
        config: the recipe, or its YAML file.
        settings: the recipe's, with `overrides`.
        overrides: settings of the command line.
        benchmarks: measured besides our own prompt sets.
        kept: {kind: (what it depends on, the object, seconds to make it)} of the last objects.
        saved_seconds: seconds that a method did not need since an object was kept.
    """

    output: Path
    config: str
    settings: Settings
    overrides: list[str]
    benchmarks: list[str]
    kept: dict[str, tuple[str, Any, float]] = field(default_factory=dict)
    saved_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.problems = {
            name: read_problems(name, self.settings.evaluate.data_dir, self.settings.evaluate.limit)
            for name in self.benchmarks
            if name in SOLUTIONS
        }
        training.measure_kfac = self._measure_kfac  # `train` looks it up in its module
        self.model: ChatModel = load_model(self.settings.model)
        self.sets = with_validation_prompts(load_prompt_sets(self.settings.prompts, 0))
        # A wrong name, file or judge is reported before anything is trained.
        self._suite(self.settings, [*OWN, *self.benchmarks]).prepare()

    def direction(self, settings: Settings) -> Direction:
        """The direction that these settings find; it is kept in the output folder."""
        key = settings.direction.model_dump_json()
        name = hashlib.sha256(key.encode()).hexdigest()[:12]
        path = self.output / "work" / f"direction-{name}.safetensors"
        if not path.with_suffix(".json").exists():  # the JSON is written last
            harmful, harmless = self.sets["harmful"], self.sets["harmless"]
            found = extract_direction(
                self.model,
                _messages(harmful.train),
                _messages(harmless.train),
                _messages(harmful.validation),
                _messages(harmless.validation),
                settings.direction,
            )
            save_tensors(path, {"direction": found.direction.vector.float().contiguous()})
            write_json(path.with_suffix(".json"), found.to_json())
        facts = read_json(path.with_suffix(".json"))
        return Direction(
            load_tensors(path)["direction"],
            facts["layer"],
            facts["coefficient"],
            facts["method"],
        )

    def _once(self, what: str, depends_on: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, or the kept object of this kind if it depends on the same.

        In that case the seconds that it took are added to `saved_seconds`.
        """
        key = json.dumps(depends_on)
        if what in self.kept and self.kept[what][0] == key:
            self.saved_seconds += self.kept[what][2]
        else:
            self.kept.pop(what, None)  # frees the matrices of another seed
            started = time.perf_counter()
            self.kept[what] = key, make(), time.perf_counter() - started
        return self.kept[what][1]

    def _measure_kfac(
        self, model: Any, student: Any, anchors: Any, damping: float, seed: int, **_: Any
    ) -> Any:
        """`measure_kfac`, kept: it does not depend on the values of fresh adapters."""
        factors = [name for name, _ in student.named_parameters() if ".lora_" in name]
        return self._once(
            "kfac",
            [factors, anchors, damping, seed],
            lambda: measure_kfac(model, student, anchors, damping, seed),
        )

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train and judge one method with one seed."""
        method = METHODS[name]
        settings = settings_of(self.config, self.overrides, method, seed)
        torch.manual_seed(seed)
        work = _fresh(self.output / "work" / f"{name}-seed{seed}")
        memory = MemorySampler()
        memory.start()
        started, self.saved_seconds = time.perf_counter(), 0.0
        student = None
        if method.kind == "distill":
            student = self._distill(settings, method, work)
        elif method.kind in ("sft", "dpo"):
            student = imitate(
                self.model,
                settings,
                method.kind,
                _messages(self.sets["harmful"].train),
                self._anchors(settings, method),
                self._measure_kfac,
                work,
            )
        seconds = {"train": time.perf_counter() - started + self.saved_seconds}
        memory.stop()
        if student is not None:
            student.save_pretrained(work / "adapter")
        started = time.perf_counter()
        names = [*OWN, *measurable(method, self.benchmarks)]
        entries = self._judge(settings, method, student, names)
        if student is not None:
            harmless = _messages(self.sets["harmless"].test)[: settings.evaluate.drift_prompts]
            entries |= measure_drift(
                self.model, student, harmless, max_new_tokens=settings.evaluate.max_new_tokens
            ).to_json()
            for checkpoint in work.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            student.unload()
        seconds["evaluate"] = time.perf_counter() - started
        return {
            "method": name,
            "description": method.description,
            "seed": seed,
            "max_new_tokens": settings.evaluate.max_new_tokens,
            "benchmarks": entries,
            "seconds": seconds,
            "peak_memory_bytes": memory.peak_bytes,
            "training": read_metrics(work / "metrics.jsonl"),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "settings": settings.model_dump(mode="json"),
        }

    def _teacher(self, settings: Settings, method: Method) -> Teacher:
        direction = self.direction(settings) if settings.teacher.steers else None
        if method.means and direction is not None:
            direction = self._difference_of_means(
                direction, settings.direction.advanced.train_prompts
            )
        return make_teacher(settings.teacher, direction)

    def _difference_of_means(self, like: Direction, count: int) -> Direction:
        """A direction from the last tokens of all prompts: the built-in model refuses too few."""
        harmful, harmless = (
            prompt_means(self.model, _messages(self.sets[name].train)[:count], 1)[0][0, like.layer]
            for name in ("harmful", "harmless")
        )
        vector = (harmful - harmless).float()
        vector *= like.vector.norm() / vector.norm()
        return replace(like, vector=vector, method="harmful-harmless", position=-1)

    def _distill(self, settings: Settings, method: Method, work: Path) -> Any:
        chosen, teacher = settings.tokens, self._teacher(settings, method)
        prompts = _messages(self.sets[chosen.prompts].validation)[: chosen.advanced.num_prompts]
        seed = settings.seed
        parts = (chosen, settings.teacher, settings.direction)
        ids = self._once(
            "tokens",
            [seed, method.means, *(part.model_dump(mode="json") for part in parts)],
            lambda: select_safety_tokens(self.model, teacher, prompts, chosen, seed=seed).ids,
        )
        if method.random_tokens:
            vocabulary = self.model.model.get_output_embeddings().weight.shape[0]
            ids = random.Random(seed).sample(range(vocabulary), len(ids))
        return training.train(
            self.model,
            teacher,
            ids,
            self._prompts(settings, method),
            settings.train,
            output=training.TrainingOutput(work, on_step=_report),
            seed=seed,
        )

    def _anchors(self, settings: Settings, method: Method) -> list[Conversation]:
        sets = (self.sets[name].train for name in settings.train.advanced.anchor_sets)
        return [m for prompts in sets for m in _messages(prompts[: method.anchor_prompts])]

    def _prompts(self, settings: Settings, method: Method) -> TrainingPrompts:
        anchors, repaired = self._anchors(settings, method), []
        if settings.train.wrong_refusals == "repair":
            base = ModelVariant("base", self.model, self.model.model, Teacher())
            cache = Cache(self.output / "work" / "answers", base.identity)
            train = settings.train
            found = self._once(
                "repairs",
                [train.advanced.anchor_sets, train.num_prompts, settings.evaluate.max_new_tokens],
                lambda: find_repairs(base, self.sets, settings, cache).to_json(),
            )
            print("\n".join(repair_lines(found)), file=sys.stderr, flush=True)
            chosen = training_prompts(train, self.sets, found)
            repaired = chosen.repaired
            anchors = [each for each in anchors if each in chosen.anchors]
        return TrainingPrompts(_messages(self.sets["harmful"].train), anchors, repaired)

    def _suite(self, settings: Settings, names: Sequence[str]) -> Suite:
        judged = [name for name in names if name not in SOLUTIONS]
        return Suite.plan(judged, settings, self.sets, self.output / "work" / "answers")

    def _judge(
        self, settings: Settings, method: Method, student: Any, names: Sequence[str]
    ) -> dict[str, Any]:
        """Entries of `names` for the student or, if it is None, for the base or the teacher."""
        runner = self.model.model if student is None else student
        if method.kind == "teacher":
            variant = ModelVariant("teacher", self.model, runner, self._teacher(settings, method))
        else:
            variant = ModelVariant("model", self.model, runner)
        suite = self._suite(settings, names)
        (found,) = suite.measure([variant], self.output / "work" / "answers").values()
        entries = {name: result.to_json() for name, result in found.items()}
        solved = {
            name: measure_solutions(self.model, runner, self.problems[name])
            for name in names
            if name in SOLUTIONS
        }
        return entries | solved

    def complete(
        self, name: str, seed: int, result: dict[str, Any], missing: Sequence[str]
    ) -> dict[str, Any]:
        """`result` with the `missing` benchmarks of the adapter that was kept."""
        method = METHODS[name]
        settings = settings_of(self.config, self.overrides, method, seed)
        student: Any = None
        if method.kind in ("distill", "sft", "dpo"):
            adapted = PeftModel.from_pretrained(
                self.model.model, adapter_folder(self.output, name, seed)
            )
            student = compute_in_model_dtype(adapted.eval())
        entries = self._judge(settings, method, student, missing)
        if student is not None:
            student.unload()
        return {**result, "benchmarks": {**result["benchmarks"], **entries}}


def measurable(method: Method, benchmarks: Sequence[str]) -> list[str]:
    """The benchmarks; for the teacher without solutions, which are read without its context."""
    return [name for name in benchmarks if method.kind != "teacher" or name not in SOLUTIONS]


def adapter_folder(output: Path, name: str, seed: int) -> Path:
    """Where the adapter of a method is kept."""
    return output / "work" / f"{name}-seed{seed}" / "adapter"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The loss, the mass on S and the refusing rollouts of every step; empty without a file."""
    if not path.exists():
        return []
    names = ("loss", "mass_student", "mass_teacher", "refusal_rate", "anchor_refusal_rate")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        {name: round(line[name], 4) for name in names if line.get(name) is not None}
        for line in lines
    ]


def _messages(prompts: Sequence[Any]) -> list[Conversation]:
    return [prompt.messages for prompt in prompts]


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _report(metrics: dict[str, Any], total: int) -> None:
    if metrics["step"] % 20 == 0:
        print(f"  step {metrics['step']}/{total}", file=sys.stderr, flush=True)
