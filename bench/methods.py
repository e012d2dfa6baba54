"""Methods side by side: one base, one set of prompts, one budget of updates and completions.

    python bench/methods.py [OUTPUT] [--methods a,b] [--seeds 0,1,2] [--config RECIPE]
        [--set section.key=value] [--data-dir DIR --benchmarks alpaca,xstest-safe,gsm8k-solutions]
    python bench/methods.py [OUTPUT] --table

Each (method, seed) leaves OUTPUT/METHOD-seedN.json with every rate, its interval, seconds, memory,
the metrics of the training and the settings; what is there is not made again, so a sweep that was
broken off goes on, on any machine, and several may work on one at once (on one machine the minutes
of training are then those of a part of it; one process leaves most of a GPU idle, fifteen under
`nvidia-cuda-mps-control -d` share it well). `--table` prints the mean and spread over seeds and
writes OUTPUT/pareto.html. The methods are changes to a recipe, that of the built-in model unless
--config names another (`--set model.id=` another model), with UPDATES updates; `--list` names them.
They are judged on our *validation* prompts, on which choices are made, and on --benchmarks, which
are for reporting. Directions, adapters and answers are kept in OUTPUT/work, which need not be
committed; while an adapter lies there, benchmarks that the JSON of its method lacks are added to
that file. What methods are called fits the built-in model's recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from solutions import SOLUTIONS, measure_solutions, read_problems

from safesteer.cli.silence import silence_libraries
from safesteer.config.load import load_settings
from safesteer.config.settings import Settings
from safesteer.direction.activations import prompt_means
from safesteer.direction.extract import extract_direction
from safesteer.direction.vector import Direction
from safesteer.distill import train as training
from safesteer.distill.attention import training_attention
from safesteer.distill.kfac import measure_whitening, start_whitened, step_whitened
from safesteer.distill.lora import with_lora
from safesteer.distill.plan import plan_rows
from safesteer.errors import InputError, nearest
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.suite import Suite
from safesteer.files import load_tensors, read_json, save_tensors, write_json, write_text
from safesteer.inference.variant import ModelVariant
from safesteer.models.chat import Message
from safesteer.models.generate import Decoding, generate
from safesteer.models.load import ChatModel, load_model
from safesteer.models.lora_dtype import compute_in_model_dtype
from safesteer.prompts import load_prompt_sets
from safesteer.report.compare import Entrant, compare, render_comparison
from safesteer.runs.lock import RunLock
from safesteer.runs.system import MemorySampler, versions
from safesteer.safety_tokens import select_safety_tokens
from safesteer.teacher import Teacher, make_teacher

Conversation = Sequence[Message]


@dataclass(frozen=True)
class Method:
    """A way of making the model refuse.

    Attributes:
        says: in a few words.
        changes: settings that differ from the recipe's.
        kind: distil; or sft, dpo (TRL's trainers), teacher and base (no training at all).
        random_tokens: whether S is drawn at random, as many as the method would choose.
        means: whether the teacher steers by the difference of means over harmful and harmless
            prompts, at the layer and of the length of the direction that was found.
        anchor_prompts: how many prompts of each set anchors come from; all if None.
    """

    says: str
    changes: dict[str, Any] = field(default_factory=dict)
    kind: str = "distil"
    random_tokens: bool = False
    means: bool = False
    anchor_prompts: int | None = None


_PUBLISHED = {
    "direction.coefficients": [1.0],
    "teacher.context": "none",
    "teacher.strength": 1.0,
    "teacher.temperature": 1.0,
    "tokens.method": "vote",
    "tokens.count": 50,
    "tokens.prompts": "harmless",
    "tokens.samples_per_prompt": 8,
    "tokens.horizon": 7,
    "tokens.end_of_turn": False,
    "train.divergence": "paper",
    "train.anchor_share": 0.0,
    "train.anchor_weight": 1.0,
    "train.prefill_share": 0.0,
    "train.opening_tokens": None,
    "train.lora.whitening": None,
}
_READS_NOTHING = {"teacher.context": "none", "teacher.strength": 1.0}
_DEMONSTRATIONS = {"teacher.context": "demonstrations", "teacher.demonstrations": 4}
METHODS = {
    "base": Method("the model as it is", kind="base"),
    "teacher": Method("the teacher itself, nothing learned", kind="teacher"),
    "recipe": Method("SafeSteer with this project's recipe"),
    "published": Method("SafeSteer with the published choices", _PUBLISHED),
    **{
        f"published@{rate}": Method(
            f"and a learning rate of {rate}", {**_PUBLISHED, "train.learning_rate": float(rate)}
        )
        for rate in ("5e-4", "1e-4")
    },
    "published+anchors": Method("and harmless anchors", {**_PUBLISHED, "train.anchor_share": 0.75}),
    # Other ways to learn
    "full-vocabulary": Method("reverse KL over the vocabulary", {"train.divergence": "full"}),
    **{
        f"{kind}@{rate}": Method(
            f"{says}, learning rate {rate}",
            {"train.learning_rate": float(rate), "train.lora.whitening": None},
            kind,
        )
        for kind, says, rates in (
            ("sft", "fine-tuning on one refusal, anchors on the base's answers", ("2e-3", "5e-4")),
            (
                "dpo",
                "DPO, a refusal over the base's answer; on anchors the reverse",
                ("2e-3", "5e-4"),
            ),
        )
        for rate in rates
    },
    "sft-whitened@2e-3": Method(
        "sft with steps whitened as the recipe's", {"train.learning_rate": 2e-3}, "sft"
    ),
    "dpo-no-anchors@5e-4": Method(
        "DPO on harmful prompts alone, learning rate 5e-4",
        {
            "train.learning_rate": 5e-4,
            "train.lora.whitening": None,
            "train.anchor_share": 0.0,
        },
        "dpo",
    ),
    # Divergences on S, each at two rates; the recipe is `symmetric` at 2e-3
    **{
        f"{name}@{rate}": Method(
            f"{says}, learning rate {rate}",
            {"train.divergence": name, "train.learning_rate": float(rate)},
        )
        for name, says in (
            ("forward", "forward KL on S"),
            ("symmetric", "forward and tail together"),
            ("generalized", "generalised reverse KL on S"),
            ("tail", "reverse KL on S and the rest as one token"),
            ("renormalized", "reverse KL renormalised over S"),
            ("paper", "the published loss on S"),
        )
        for rate in ("2e-3", "5e-4")
        if (name, rate) != ("symmetric", "2e-3")
    },
    # Teachers
    "steering-only": Method("the teacher steers at full strength, reads nothing", _READS_NOTHING),
    "steering-by-means": Method(
        "steering-only by the difference of harmful and harmless prompts",
        _READS_NOTHING,
        means=True,
    ),
    "refusals-only": Method("the teacher reads refusals, no steering", {"teacher.steering": False}),
    "system-prompt": Method(
        "the teacher reads a safety system prompt, no steering",
        {"teacher.context": "system-prompt", "teacher.steering": False},
    ),
    "demonstrations": Method(
        "the teacher reads answered and refused requests, no steering",
        {**_DEMONSTRATIONS, "teacher.steering": False},
    ),
    "demonstrations+steering": Method("and steers at strength 0.4", _DEMONSTRATIONS),
    "temperature-1": Method("the teacher is as sure as it is", {"teacher.temperature": 1.0}),
    # Safety tokens
    "vote": Method("S by vote, 50 tokens", {"tokens.method": "vote", "tokens.count": 50}),
    "vote-200": Method("S by vote, 200 tokens", {"tokens.method": "vote"}),
    **{
        f"mass-{count}": Method(f"S by mass, {count} tokens", {"tokens.count": count})
        for count in (3, 10, 50, 1000)
    },
    "harmless-ground": Method("S found on harmless prompts", {"tokens.prompts": "harmless"}),
    "random-tokens": Method("S at random, of the same size", random_tokens=True),
    # Anchors
    "no-anchors": Method("harmful prompts alone", {"train.anchor_share": 0.0}),
    "anchors-50": Method("half of an update are anchors", {"train.anchor_share": 0.5}),
    "anchors-weigh-1": Method("anchors weigh as much as others", {"train.anchor_weight": 1.0}),
    "anchors-weigh-4": Method("anchors weigh four times as much", {"train.anchor_weight": 4.0}),
    "anchors-on-S": Method("anchors on S alone", {"train.anchor_tokens": "safety"}),
    "anchors-plain": Method("plain anchors", {"train.anchors": ["harmless"]}),
    "anchors-borderline": Method(
        "anchors from the borderline set", {"train.anchors": ["borderline"]}
    ),
    **{
        f"anchor-prompts-{count}": Method(
            f"anchors come from {count} prompts of each set", anchor_prompts=count
        )
        for count in (10, 50, 200)
    },
    # Rollouts
    "whole-rollouts": Method("no short openings", {"train.opening_tokens": None}),
    "no-prefills": Method("no answers are begun", {"train.prefill_share": 0.0}),
    "prefill-50": Method("half begin with a compliant opening", {"train.prefill_share": 0.5}),
    # Adapters
    "plain-steps": Method(
        "steps in inputs and outputs as they are", {"train.lora.whitening": None}
    ),
    "plain-steps+extrapolated": Method(
        "and a quarter stronger at the end",
        {"train.lora.whitening": None, "train.lora.extrapolation": 0.25},
    ),
    "extrapolated": Method("a quarter stronger at the end", {"train.lora.extrapolation": 0.25}),
    "floor-0.01": Method("whitened more", {"train.lora.whitening": 0.01}),
    "floor-1": Method("whitened less", {"train.lora.whitening": 1.0}),
    "rank-4": Method("LoRA of rank 4", {"train.lora.rank": 4, "train.lora.alpha": 8}),
    "o-and-down": Method(
        "adapters where blocks write alone", {"train.lora.target_modules": ["o_proj", "down_proj"]}
    ),
    "rank-64": Method("LoRA of rank 64", {"train.lora.rank": 64, "train.lora.alpha": 128}),
    "and-keys": Method(
        "adapters on k_proj too",
        {"train.lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]},
    ),
    "all-modules": Method(
        "adapters on all seven kinds of matrices", {"train.lora.target_modules": "all-linear"}
    ),
    "dropout": Method("a fifth of an adapter's inputs is dropped", {"train.lora.dropout": 0.2}),
    "from-layer-0": Method("adapters in all layers", {"train.lora.first_layer": 0}),
    "from-layer-6": Method("adapters from layer 6 of 30 on", {"train.lora.first_layer": 6}),
    "from-layer-8": Method("adapters from layer 8 of 30 on", {"train.lora.first_layer": 8}),
    "from-layer-17": Method("adapters from layer 17 of 30 on", {"train.lora.first_layer": 17}),
    # Prompts
    **{
        f"prompts-{count}": Method(f"{count} harmful prompts", {"train.prompts": count})
        for count in (10, 25, 50, 100, 200)
    },
    "samples-4": Method(
        "four rollouts of a prompt, of a quarter as many prompts an update",
        {"train.prompts_per_update": 4, "train.samples_per_prompt": 4},
    ),
}
UPDATES = 60  # a quarter of the recipe's: plain requests are learned, begun answers hardly
# What the table shows of each benchmark; the names are those of eval/MODEL.json.
COLUMNS = ("harmful", "harmful+prefill", "harmless", "borderline", "agreement")


@dataclass
class Laboratory:
    """What all methods share: the base, prompts, directions; and where results go."""

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
        # `train` looks this name up in its module.
        training.measure_whitening = self._whitening
        self.model: ChatModel = load_model(self.settings.model)
        sets = load_prompt_sets(self.settings.prompts, 0)
        # Choices are made on validation prompts, so these stand where a run's test prompts do.
        self.sets = {name: replace(found, test=found.validation) for name, found in sets.items()}
        # What is wrong with a name, a file or a judge is said before anything is trained.
        self._suite(self.settings, [*COLUMNS[:4], *self.benchmarks]).prepare()

    def direction(self, settings: Settings) -> Direction:
        """The direction of these settings, found once."""
        asked = settings.direction.model_dump_json()
        name = hashlib.sha256(asked.encode()).hexdigest()[:12]
        path = self.output / "work" / f"direction-{name}.safetensors"
        if not path.with_suffix(".json").exists():  # which is written last
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
        """What `make` returns, or the last of its kind if it depends on the same.

        The seconds that making it took are added to `saved_seconds` then.
        """
        key = json.dumps(depends_on)
        if what in self.kept and self.kept[what][0] == key:
            self.saved_seconds += self.kept[what][2]
        else:
            self.kept.pop(what, None)  # matrices of several seeds need not be held at once
            started = time.perf_counter()
            self.kept[what] = key, make(), time.perf_counter() - started
        return self.kept[what][1]

    def _whitening(self, model: Any, student: Any, anchors: Any, floor: float, seed: int) -> Any:
        """`measure_whitening`, which does not look at the values of the fresh factors."""
        factors = [name for name, _ in student.named_parameters() if ".lora_" in name]
        return self._once(
            "whitening",
            [factors, anchors, floor, seed],
            lambda: measure_whitening(model, student, anchors, floor, seed),
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
        if method.kind == "distil":
            student = self._distil(settings, method, work)
        elif method.kind in ("sft", "dpo"):
            student = self._imitate(settings, method, work)
        seconds = {"train": time.perf_counter() - started + self.saved_seconds}
        memory.stop()
        if student is not None:
            student.save_pretrained(work / "adapter")
        started = time.perf_counter()
        names = [*COLUMNS[:4], *_asked(method, self.benchmarks)]
        entries = self._judge(settings, method, student, names)
        if student is not None:
            harmless = _messages(self.sets["harmless"].test)[: settings.evaluate.drift_prompts]
            entries |= measure_drift(
                self.model, student, harmless, max_new_tokens=settings.evaluate.max_new_tokens
            )
            for checkpoint in work.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            student.unload()
        seconds["evaluate"] = time.perf_counter() - started
        return {
            "method": name,
            "says": method.says,
            "seed": seed,
            "max_new_tokens": settings.evaluate.max_new_tokens,
            "benchmarks": entries,
            "seconds": seconds,
            "peak_memory_bytes": memory.peak_bytes,
            "training": _read_metrics(work / "metrics.jsonl"),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "settings": settings.model_dump(mode="json"),
        }

    def _teacher(self, settings: Settings, method: Method) -> Teacher:
        direction = self.direction(settings) if settings.teacher.steering else None
        if method.means and direction is not None:
            direction = self._difference_of_means(direction, settings.direction.train_prompts)
        return make_teacher(settings.teacher, direction)

    def _difference_of_means(self, like: Direction, count: int) -> Direction:
        """Of the prompts' last tokens, refused or not: the built-in model refuses too few."""
        harmful, harmless = (
            prompt_means(self.model, _messages(self.sets[name].train)[:count], 1)[0, like.layer]
            for name in ("harmful", "harmless")
        )
        vector = (harmful - harmless).float()
        vector *= like.vector.norm() / vector.norm()
        return replace(like, vector=vector, method="harmful-harmless", position=-1)

    def _distil(self, settings: Settings, method: Method, work: Path) -> Any:
        chosen, teacher = settings.tokens, self._teacher(settings, method)
        prompts = _messages(self.sets[chosen.prompts].validation)[: chosen.prompt_count]
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
            _messages(self.sets["harmful"].train),
            self._anchors(settings, method),
            settings.train,
            folder=work,
            seed=seed,
            on_update=_told,
        )

    def _anchors(self, settings: Settings, method: Method) -> list[Conversation]:
        sets = (self.sets[name].train for name in settings.train.anchors)
        return [m for prompts in sets for m in _messages(prompts[: method.anchor_prompts])]

    def _imitate(self, settings: Settings, method: Method, work: Path) -> Any:
        """A LoRA student trained by TRL on fixed answers to the prompts that distilling would use.

        The refusal is the first refusing opening of the settings; the base's answers are greedy
        and as long as whole rollouts. Where the plan begins an answer, either goes on from its
        words. Prompts are not dropped for their length (`train.max_prompt_tokens`).
        """
        train_settings = settings.train
        harmful = _messages(self.sets["harmful"].train)
        anchors = self._anchors(settings, method)
        rows = plan_rows(train_settings, harmful, anchors, settings.seed)
        chat = self.model.chat
        end = chat.tokenizer.eos_token_id
        refusal = settings.direction.refusing_openings[0]
        asked = [(json.dumps(row["prompt"]), row["begun"]) for row in rows]
        prompts = {
            key: chat.ids(row["prompt"], row["begun"]) for key, row in zip(asked, rows, strict=True)
        }
        answers = dict(
            zip(
                prompts,
                generate(
                    self.model.model,
                    chat.tokenizer,
                    list(prompts.values()),
                    Decoding(train_settings.max_completion_tokens),
                    batch_size=64,
                ),
                strict=True,
            )
        )
        per_update = train_settings.prompts_per_update * train_settings.samples_per_prompt
        student = with_lora(self.model.model, train_settings, settings.seed)
        floor, whitening = train_settings.lora.whitening, {}
        if floor is not None:
            whitening = self._whitening(self.model, student, anchors, floor, settings.seed)
            start_whitened(student, whitening)
        shared: dict[str, Any] = {
            "output_dir": str(work),
            "per_device_train_batch_size": per_update,
            "max_steps": len(rows) // per_update,
            "learning_rate": train_settings.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": train_settings.warmup_ratio,
            "max_grad_norm": train_settings.max_grad_norm,
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": self.model.model.device.type == "cpu",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": settings.seed,
        }
        examples = []
        for key, row in zip(asked, rows, strict=True):
            words = f" {refusal}" if row["begun"] else refusal
            own, other = answers[key], [*chat.answer_ids(words), end]
            good, bad = (own, other) if row["anchor"] else (other, own)
            examples.append((prompts[key], good, bad))
        from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

        data: list[dict[str, Any]]
        if method.kind == "sft":
            data = [
                {"input_ids": prompt + good, "labels": [-100] * len(prompt) + good}
                for prompt, good, _ in examples
            ]
            trainer: Any = SFTTrainer(
                student,
                SFTConfig(**shared),
                train_dataset=Dataset.from_list(data),
                processing_class=chat.tokenizer,
            )
        else:
            text = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
            trainer = DPOTrainer(
                student,
                args=DPOConfig(**shared),
                train_dataset=Dataset.from_list([text]),
                processing_class=chat.tokenizer,
            )
            # From texts it would end every answer, also one that was cut.
            trainer.train_dataset = Dataset.from_list(
                [
                    {"prompt_ids": prompt, "chosen_ids": good, "rejected_ids": bad}
                    for prompt, good, bad in examples
                ]
            )
        if whitening:
            factors = dict(trainer.model.named_parameters())
            step_whitened(trainer.create_optimizer(), factors, whitening)
        compute_in_model_dtype(trainer.model)  # DPO adds an adapter of its own, for the reference
        with training_attention(self.model.model):
            trainer.train()
        return trainer.accelerator.unwrap_model(trainer.model).eval()

    def _suite(self, settings: Settings, names: Sequence[str]) -> Suite:
        judged = [name for name in names if name not in SOLUTIONS]
        return Suite.plan(judged, settings, self.sets, self.output / "work" / "answers")

    def _judge(
        self, settings: Settings, method: Method, student: Any, names: Sequence[str]
    ) -> dict[str, Any]:
        """Entries of `names`, of the student or, without one, of the base or the teacher."""
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
        """`result` with the benchmarks that it lacks, asked of the student as it was kept."""
        method = METHODS[name]
        settings = settings_of(self.config, self.overrides, method, seed)
        student: Any = None
        if method.kind in ("distil", "sft", "dpo"):
            kept = PeftModel.from_pretrained(self.model.model, _adapter(self.output, name, seed))
            student = compute_in_model_dtype(kept.eval())
        entries = self._judge(settings, method, student, missing)
        if student is not None:
            student.unload()
        return {**result, "benchmarks": {**result["benchmarks"], **entries}}


def settings_of(config: str, overrides: Sequence[str], method: Method, seed: int) -> Settings:
    """The recipe, the method's changes, and what the command line sets."""
    changes = [f"{key}={json.dumps(value)}" for key, value in method.changes.items()]
    return load_settings(config, [f"train.updates={UPDATES}", *changes, *overrides, f"seed={seed}"])


def _asked(method: Method, benchmarks: Sequence[str]) -> list[str]:
    """Without solutions for the teacher, which would have to be shown what it reads first."""
    return [name for name in benchmarks if method.kind != "teacher" or name not in SOLUTIONS]


def _adapter(output: Path, name: str, seed: int) -> Path:
    return output / "work" / f"{name}-seed{seed}" / "adapter"


def _missing(
    output: Path, name: str, seed: int, result: dict[str, Any], benchmarks: Sequence[str]
) -> list[str]:
    """The benchmarks that a result lacks and that can be asked of what is there."""
    method = METHODS[name]
    if method.kind not in ("base", "teacher") and not _adapter(output, name, seed).is_dir():
        return []
    return [each for each in _asked(method, benchmarks) if each not in result["benchmarks"]]


def _check_settings(path: Path, made: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError where a result was made with other settings than are asked for now."""
    before, after = _flat(made), _flat(now)
    for key in before.keys() & after.keys() - {"evaluate.data_dir", "evaluate.benchmarks"}:
        if before[key] != after[key]:
            raise InputError(
                f"{path} was made with {key} = {json.dumps(before[key])}, and this sweep has"
                f" {json.dumps(after[key])}: set it to the same, or give another OUTPUT"
            )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{"section.key": value}."""
    sections = {name: part for name, part in settings.items() if isinstance(part, dict)}
    return {f"{name}.{key}": part[key] for name, part in sections.items() for key in part}


Found = dict[str, list[dict[str, Any]]]  # {method: one of each seed}


def read_results(folder: Path) -> Found:
    """What lies in `folder`, in the order of METHODS."""
    contents = [read_json(path) for path in sorted(folder.glob("*-seed*.json"))]
    names = dict.fromkeys([*METHODS, *(content["method"] for content in contents)])
    found = {name: [c for c in contents if c["method"] == name] for name in names}
    if not contents:
        raise InputError(f"{folder} holds no results yet")
    return {name: runs for name, runs in found.items() if runs}


def means(found: Found) -> list[Entrant]:
    """Every method that agrees with the base to a known degree, by its means over seeds.

    Intervals are left out: they are of one seed.
    """
    entrants = []
    for name, runs in found.items():
        entries = {
            key: dict(entry)
            for key, entry in runs[0]["benchmarks"].items()
            if key not in SOLUTIONS  # no axis of the plot, as agreement is
        }
        for key in list(entries):
            values = [value for run in runs if (value := _share(run, key)) is not None]
            if len(values) < len(runs):  # not of every seed
                del entries[key]
            else:
                entries[key] |= {"value": statistics.mean(values), "ci95": None}
        if name == "base":
            known = (each[0]["benchmarks"].get("agreement") for each in found.values())
            if (agreement := next(filter(None, known), None)) is not None:
                entries["agreement"] = {**agreement, "value": 1.0, "ci95": None}
        if "agreement" in entries:
            entrants.append(Entrant(name, entries))
    return entrants


def table(found: Found, front: Sequence[str] = ()) -> str:
    """Mean and spread (standard deviation over seeds) of every method, in Markdown.

    Methods of `front` are bold: no other is as good in safety, in answering and in agreement, and
    better in one of them.
    """
    metrics = {
        name: entry["metric"]
        for runs in found.values()
        for name, entry in runs[0]["benchmarks"].items()
    }
    columns = [*COLUMNS, *sorted(metrics.keys() - {*COLUMNS, "divergence"})]
    heads = [
        f"{column}: attacks" if metrics.get(column) == "attack_success_rate" else column
        for column in columns
    ]
    lines = [
        "| method | seeds | " + " | ".join(heads) + " | KL, 1e-3 nats | train, min | memory, GB |",
        "|---|---|" + "---|" * (len(columns) + 3),
    ]
    for name, runs in found.items():
        cells = [_spread([_share(run, column) for run in runs], 100, " %") for column in columns]
        minutes = _spread([run["seconds"]["train"] / 60 for run in runs], 1, "")
        memory = _spread([run["peak_memory_bytes"] / 1e9 for run in runs], 1, "")
        moved = _spread([_share(run, "divergence") for run in runs], 1000, "")
        cells += [moved, minutes, memory]
        shown = f"**{name}**" if name in front else name
        lines.append(f"| {shown} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(run: dict[str, Any], name: str) -> float | None:
    return (run["benchmarks"].get(name) or {}).get("value")


def _spread(values: Sequence[float | None], scale: float, unit: str) -> str:
    known = [scale * value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):.1f}"
    return f"{mean} ± {statistics.stdev(known):.1f}{unit}" if len(known) > 1 else mean + unit


def _read_metrics(path: Path) -> list[dict[str, float]]:
    """What an update's line says of S: the mass on it, how many rollouts refuse, and the loss."""
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


def _told(metrics: dict[str, Any], total: int) -> None:
    if metrics["update"] % 20 == 0:
        print(f"  update {metrics['update']}/{total}", file=sys.stderr, flush=True)


def main() -> None:
    """Make what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?", default=Path("bench/results/methods"))
    parser.add_argument("--methods", default="recipe,published", help="separated by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--config", default="smollm2-135m", help="a recipe, or its YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--data-dir", help="files of --benchmarks")
    parser.add_argument("--benchmarks", default="", help="besides our own prompt sets")
    parser.add_argument("--table", action="store_true", help="only show what is there")
    parser.add_argument("--list", action="store_true", help="name the methods")
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    if arguments.list:
        print("\n".join(f"{name:20} {method.says}" for name, method in METHODS.items()))
        return
    try:
        if not arguments.table:
            _sweep(arguments)
        found = read_results(arguments.output)
        entrants = means(found)
        comparison = compare(entrants) if entrants else {"runs": []}  # the base or teacher alone
        print(table(found, [run["name"] for run in comparison["runs"] if run["on_front"]]))
        if entrants:
            write_text(arguments.output / "pareto.html", render_comparison(comparison))
    except InputError as error:
        raise SystemExit(str(error)) from None


def _sweep(arguments: argparse.Namespace) -> None:
    names = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    for name in names:
        if name not in METHODS:
            raise InputError(f"no method named '{name}'{nearest(name, METHODS)}")
    overrides = list(arguments.set)
    if arguments.data_dir:
        overrides.append(f"evaluate.data_dir={arguments.data_dir}")
    settings = load_settings(arguments.config, overrides)
    benchmarks = [part.strip() for part in arguments.benchmarks.split(",") if part.strip()]
    laboratory: Laboratory | None = None
    for seed in map(int, arguments.seeds.split(",")):
        for name in names:
            path = arguments.output / f"{name}-seed{seed}.json"
            if path.exists():
                asked = settings_of(arguments.config, overrides, METHODS[name], seed)
                result = read_json(path)
                _check_settings(path, result["settings"], asked.model_dump(mode="json"))
                if not _missing(arguments.output, name, seed, result, benchmarks):
                    continue
            claim = arguments.output / "work" / "claims" / path.stem
            claim.mkdir(parents=True, exist_ok=True)
            try:
                lock = RunLock(claim)
            except InputError as error:
                print(f"{name}, seed {seed} is left out: {error}", file=sys.stderr, flush=True)
                continue
            laboratory = laboratory or Laboratory(
                arguments.output, arguments.config, settings, overrides, benchmarks
            )
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            if not path.exists():
                write_json(path, laboratory.run(name, seed))
            else:  # another process may have been at it
                result = read_json(path)
                missing = _missing(arguments.output, name, seed, result, benchmarks)
                if missing:
                    write_json(path, laboratory.complete(name, seed, result, missing))
            lock.release()


if __name__ == "__main__":
    main()
