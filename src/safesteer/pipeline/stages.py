"""The stages of a run in their order, each from the files of the one before it.

direction -> tokens -> repairs -> train -> evaluate -> report. A stage reads what earlier stages
left in the run directory, writes its own files, and is skipped while its inputs and outputs are
those that the manifest records. The main process runs all stages; other processes train with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from safesteer import distributed
from safesteer.config.settings import ModelSettings, Settings
from safesteer.direction.extract import extract_direction
from safesteer.distill.save import save_student
from safesteer.distill.train import TrainingOutput, train
from safesteer.errors import SafeSteerError
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.paired import add_paired_changes
from safesteer.evaluate.stored import write_results
from safesteer.evaluate.suite import Suite, unfinished
from safesteer.files import save_tensors, sha256_file, write_json, write_jsonl
from safesteer.inference import VARIANTS
from safesteer.inference.variant import ModelVariant
from safesteer.models.answer_cache import Cache
from safesteer.models.chat import Message
from safesteer.models.load import ChatModel, load_model
from safesteer.pipeline.repairs import find_repairs, training_prompts
from safesteer.prompts import Prompt, PromptSet
from safesteer.report.findings import MEASUREMENTS
from safesteer.report.write import write_report
from safesteer.runs.artifacts import REPAIR_ANSWERS, REPAIRS, RunArtifacts
from safesteer.runs.manifest import recorded_outputs
from safesteer.runs.own_files import check_own_files
from safesteer.runs.stage import STAGES, Incomplete, StageRecord, stages_to
from safesteer.safety_tokens import select_safety_tokens
from safesteer.teacher import Teacher, check_teacher


class Pipeline(RunArtifacts):
    """The stages of one run. `safesteer.pipeline.preflight.open_pipeline` makes it."""

    def run_all(self, stages: Sequence[str] = STAGES) -> None:
        """Run `stages` in their order; a teacher that is not steered needs no direction.

        Raises:
            SafeSteerError: the evaluation lacks verdicts; raised when the report is written.
        """
        problem = ""
        for name in stages:
            if name == "train":
                self.train()
            elif distributed.is_main() and (self.is_used(name) or name == stages[-1]):
                with distributed.single_process():
                    try:
                        getattr(self, name)()
                    except Incomplete as error:
                        problem = str(error)
        if problem:
            raise SafeSteerError(f"{self.run.path}: {unfinished(problem)}")

    # Shared by the stages ----------------------------------------------------------------------

    @cached_property
    def model(self) -> ChatModel:
        """The base model; the manifest records what is done about its thinking block."""
        model = super().model
        record: dict[str, Any] = {}
        if model.chat.thinking is not None:
            record = {"thinking": model.chat.thinking.record}
        elif model.chat.unclosed:
            record = {"unclosed_thinking": model.chat.unclosed}
        known = self.run.manifest["model"]
        names = ("thinking", "unclosed_thinking")
        if self.run.is_open and {key: known[key] for key in names if key in known} != record:
            for key in names:
                known.pop(key, None)
            known.update(record)
            self.run.save_manifest()
        return model

    @cached_property
    def suite(self) -> Suite:
        """The benchmarks and judges of the evaluation."""
        return plan_suite(self.run.path, self.settings, self.prompts)

    def must_run(self, name: str) -> bool:
        """Whether the stage `name`, or one before it, is not done with these settings."""
        return any(
            not self.run.output_hashes(stage) or self.record(stage).changed
            for stage in stages_to(name)
            if self.is_used(stage)
        )

    def is_used(self, name: str) -> bool:
        """Whether these settings need the stage `name`."""
        if name == "repairs":
            return self.settings.train.wrong_refusals == "repair"
        return name != "direction" or self.settings.teacher.steers

    def record(self, name: str) -> StageRecord:
        """The record of the stage `name`, with its present inputs."""
        sets = {key: found.sha256 for key, found in self.prompts.items()}
        outputs = self.run.output_hashes
        if name == "direction":
            used = {key: sets[key] for key in ("harmful", "harmless")}
            inputs = self._inputs("direction", **used)
        elif name == "tokens":
            inputs = self._inputs("tokens", "teacher", prompts=sets[self.settings.tokens.prompts])
        elif name == "repairs":
            chosen = self.settings.train
            inputs = self._inputs(
                prompts=sets,
                anchor_sets=chosen.advanced.anchor_sets,
                num_prompts=chosen.num_prompts,
                max_new_tokens=self.settings.evaluate.max_new_tokens,
            )
        elif name == "train":
            earlier = {key: outputs(key) for key in ("tokens", "repairs") if self.is_used(key)}
            inputs = self._inputs("train", "teacher", prompts=sets, **earlier)
        elif name == "evaluate":
            asked = {"prompts": sets, "benchmarks": self.suite.sha256}
            inputs = self._inputs("evaluate", "teacher", **asked, train=outputs("train"))
        else:
            earlier = {key: outputs(key) for key in ("tokens", "train")}
            earlier["evaluate"] = outputs("evaluate", incomplete=True)
            inputs = self._inputs("teacher", prompts=sets, **earlier)
        return self.run.stage(name, inputs)

    def _inputs(self, *sections: str, **more: Any) -> dict[str, Any]:
        """The inputs of a stage: model, seed, sections of the settings, and `more`."""
        settings = self.settings.model_dump(
            mode="json",
            exclude={
                # Where the weights lie does not change what they are.
                "model": {"id": True, "revision": True, "advanced": {"device_map", "gguf_cache"}},
                # Nor does who writes the rollouts: they are drawn from the same distribution.
                "train": {"rollouts": True, "advanced": {"vllm"}},
            },
        )
        identity = settings["model"]
        if self.settings.model.chat_template is not None:
            identity["chat_template"] = sha256_file(self.settings.model.chat_template)
        if "teacher" in sections and self.settings.teacher.steers:
            more["direction"] = self.run.output_hashes("direction")
        return {
            "model": {**identity, "sha256": self.run.manifest["model"]["sha256"]},
            "seed": self.settings.seed,
            **{section: settings[section] for section in sections},
            **more,
        }

    def _pending(self, name: str) -> StageRecord | None:
        """The record of a stage that has to run, or None."""
        stage = self.record(name)
        if stage.finished:
            self.reporter.skipped(name)
            return None
        if stage.changed:
            self.reporter.note(f"{name} runs again: {', '.join(stage.changed[:4])} changed")
        return stage

    # The stages --------------------------------------------------------------------------------

    def direction(self) -> None:
        """Find the refusal direction (paper, section 3.1)."""
        stage = self._pending("direction")
        if stage is None:
            return
        harmful, harmless = self.prompts["harmful"], self.prompts["harmless"]
        with stage:
            model = self.model
            self.reporter.stage("direction", "finding the refusal direction")
            result = extract_direction(
                model,
                _messages(harmful.train),
                _messages(harmless.train),
                _messages(harmful.validation),
                _messages(harmless.validation),
                self.settings.direction,
                on_step=self.reporter.progress,
            )
            for note in result.notes:
                self.reporter.note(note)
            check_teacher(model.model, model.chat, Teacher(result.direction))
            folder = self.run.path / "direction"
            save_tensors(
                folder / "direction.safetensors",
                {"direction": result.direction.vector.float().cpu().contiguous()},
            )
            write_json(folder / "direction.json", result.to_json())
            stage.add_output(folder / "direction.safetensors")
            stage.add_output(folder / "direction.json")
        self.reporter.result("direction", result.to_json())

    def tokens(self) -> None:
        """Choose the safety tokens (paper, section 3.2)."""
        stage = self._pending("tokens")
        if stage is None:
            return
        settings, teacher = self.settings.tokens, self.load_teacher()
        prompts = _messages(self.prompts[settings.prompts].validation)
        with stage:
            model = self.model
            self.reporter.stage("tokens", "comparing teacher and model token by token")
            found = select_safety_tokens(
                model,
                teacher,
                prompts[: settings.advanced.num_prompts],
                settings,
                seed=self.settings.seed,
                progress=lambda d, t: self.reporter.progress("teacher continuations", d, t),
            )
            path = self.run.path / "tokens" / "safety_tokens.json"
            write_json(path, found.to_json())
            stage.add_output(path)
        self.reporter.result("tokens", found.to_json())

    def repairs(self) -> None:
        """Find the harmless training prompts that the base wrongly refuses."""
        stage = self._pending("repairs")
        if stage is None:
            return
        with stage:
            base = self.variant("base")
            self.reporter.stage("repairs", "looking for wrong refusals of the base")
            cache = Cache(cache_dir(self.run.path), base.identity)
            found = find_repairs(base, self.prompts, self.settings, cache, self.reporter)
            write_json(self.run.path / REPAIRS, found.to_json())
            write_jsonl(self.run.path / REPAIR_ANSWERS, found.rows(), private=True)
            stage.add_output(REPAIRS)
            stage.add_output(REPAIR_ANSWERS)
        self.reporter.result("repairs", found.to_json())

    def train(self) -> None:
        """Distil the teacher into the model on the safety tokens (paper, section 3.3).

        All processes do this together; the main one keeps the record.
        """
        stage = self._pending_training() if distributed.is_main() else None
        if not distributed.on_main(lambda: stage is not None):
            return
        if stage is None:
            self.run.reload()
        full = self.settings.train.method == "full"
        with stage or nullcontext(), distributed.joint_work():
            student, tokenizer = self._distil(stage)
            target = self.run.path / ("model" if full else "adapter")
            if stage is not None:
                for name in ("adapter", "model"):
                    shutil.rmtree(self.run.path / name, ignore_errors=True)
            save_student(student, tokenizer, target, self.settings.model)
            if stage is not None:
                stage.add_output(target)
                stage.add_output(self.run.path / "train" / "metrics.jsonl")
        if distributed.world_size() > 1:
            self.unload()  # these weights may be a part of the whole
            distributed.destroy_process_group()
        elif not full:  # all weights are read back as they will be used, in the settings' dtype
            self.student = student

    def _pending_training(self) -> StageRecord | None:
        with distributed.single_process():
            stage = self._pending("train")
            if stage is not None:
                replaced = ("train", "adapter", "model")
                check_own_files(self.run.path, recorded_outputs(self.run.path), replaced)
            if stage is not None and not stage.resumes:
                shutil.rmtree(self.run.path / "train", ignore_errors=True)
            return stage

    def _distil(self, stage: StageRecord | None) -> tuple[Any, Any]:
        """The trained student and its tokenizer; every process does this alike."""
        settings = self.settings.train
        teacher, tokens = self.load_teacher(), self.load_tokens()
        model = self._model_to_train()
        full = settings.method == "full"
        student = model
        if full:
            student = load_model(self._train_settings(), for_full_training=True, chat=self.chat)
        distributed.barrier()  # loading can take longer than a process group would wait
        self.reporter.stage("train", "distilling the teacher on the safety tokens")

        def on_step(metrics: dict[str, Any], total: int) -> None:
            self.reporter.training_step(metrics, total)
            if stage is not None and metrics["step"] % settings.advanced.save_steps == 0:
                stage.save_progress()

        trained = train(
            student,
            teacher,
            tokens,
            training_prompts(settings, self.prompts, self.load_repairs()),
            settings,
            output=TrainingOutput(
                self.run.path / "train", self.settings.report_to, on_step, self.reporter.progress
            ),
            seed=self.settings.seed,
            base_model=model.model if full else None,
        )
        return trained, model.tokenizer

    def _train_settings(self) -> ModelSettings:
        """How a model is loaded for training: accelerate itself spreads it over devices."""
        if distributed.layout() == "replicated":
            return self.model_settings
        return self.model_settings.model_copy(update={"device": "cpu"})

    def _model_to_train(self) -> ChatModel:
        if distributed.layout() == "replicated":
            return self.model
        self.unload()  # makes room for a part of every process's model
        return load_model(self._train_settings(), chat=self.chat)

    def evaluate(self) -> None:
        """Judge base, teacher and aligned model on the test prompts, and measure drift."""
        stage = self._pending("evaluate")
        if stage is None:
            return
        with stage:
            results = self.suite.measure(
                self._variants(stage), cache_dir(self.run.path), self.reporter
            )
            rows = {
                name: {key: result.rows() for key, result in found.items()}
                for name, found in results.items()
            }
            entries = {
                name: {key: result.to_json() for key, result in found.items()}
                for name, found in results.items()
            }
            add_paired_changes(entries["aligned"], rows["aligned"], entries["base"], rows["base"])
            entries["aligned"] |= self._drift()
            for file in write_results(self.run.path, entries, rows):
                stage.add_output(file)
            for name in VARIANTS:
                self.reporter.result("evaluate", {"model": name, "benchmarks": entries[name]})
            if problem := self.suite.missing(results):
                raise Incomplete(problem)

    def _variants(self, stage: StageRecord) -> Iterator[ModelVariant]:
        """Base, teacher and aligned model; the answers of those before are kept."""
        for name in VARIANTS:
            stage.save_progress()
            yield self.variant(name)
        stage.save_progress()

    def _drift(self) -> dict[str, Any]:
        """Next-token agreement and KL of the aligned model with its base, on harmless prompts."""
        settings = self.settings.evaluate
        variant = self.variant("aligned")
        return measure_drift(
            variant.model,
            variant.runner,
            _messages(self.prompts["harmless"].test)[: settings.drift_prompts],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.advanced.batch_size,
            progress=lambda d, t: self.reporter.progress("drift from the base", d, t),
        ).to_json()

    def report(self) -> None:
        """Measure the models' insides, then write report.html and the model card."""
        from safesteer.report.measure import measure  # slow to import

        stage = self.record("report")
        if stage.finished:
            self.reporter.skipped("report")
            write_report(self.run, missing_only=True)
            return
        self.reporter.stage("report", "writing the report")
        # A page first, which is there even if measuring the models fails.
        measurements = self.run.path / MEASUREMENTS
        measurements.unlink(missing_ok=True)
        write_report(self.run)
        with stage:
            write_json(measurements, measure(self), private=True)  # it quotes rollouts
            stage.add_output(MEASUREMENTS)
        write_report(self.run)


def cache_dir(run: Path) -> Path:
    """The folder of a run where answers are kept during the evaluation and after it."""
    return run / "eval" / "cache"


def plan_suite(run: Path, settings: Settings, prompts: Mapping[str, PromptSet]) -> Suite:
    """Plan the evaluation of a run: our own prompt sets, and the settings' benchmarks."""
    names = [*prompts, *settings.evaluate.benchmarks]
    return Suite.plan(names, settings, prompts, cache_dir(run))


def _messages(prompts: list[Prompt]) -> list[tuple[Message, ...]]:
    return [prompt.messages for prompt in prompts]
