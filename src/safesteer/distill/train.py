"""One training run: builds the student, plans the updates, drives the trainer, keeps the metrics.

Checkpoints are transformers' own; a marker that is written last tells a whole checkpoint from one
that a kill cut short. Resuming continues from the last whole one with the same losses.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import DistillationConfig

from safesteer import distributed
from safesteer.config.rules import KFAC_AND_ANCHORS, PREFILLS_AND_THOUGHTS
from safesteer.config.settings import TrainSettings
from safesteer.distill.attention import training_attention
from safesteer.distill.kfac import measure_whitening, start_whitened
from safesteer.distill.lora import extrapolate, with_lora
from safesteer.distill.plan import completions_per_process, for_processes, plan_rows
from safesteer.distill.teacher_pass import TEACHER_TOKENS
from safesteer.distill.trainer import SafeSteerTrainer
from safesteer.distill.vllm import check_rollouts, release, vllm_arguments
from safesteer.errors import InputError, SafeSteerError
from safesteer.files import read_json, write_json, write_text
from safesteer.models.chat import Message
from safesteer.models.layers import backbone
from safesteer.models.load import ChatModel
from safesteer.models.oom import attempt
from safesteer.teacher import Teacher

_MARKER = "complete.json"
# AdamW's and the schedule's values in every recipe, the published ones included.
WEIGHT_DECAY, WARMUP_RATIO, MAX_GRAD_NORM = 0.0, 0.1, 1.0
ROLLOUT_TEMPERATURE = 1.0  # the loss is on-policy only at 1
Update = Callable[[dict[str, float], int], None]  # (metrics of the update, updates in all)


def train(
    model: ChatModel,
    teacher: Teacher,
    safety_tokens: Sequence[int],
    harmful: Sequence[Sequence[Message]],
    anchors: Sequence[Sequence[Message]] = (),
    settings: TrainSettings | None = None,
    *,
    folder: str | Path,
    seed: int = 0,
    frozen: Any = None,
    report_to: Sequence[str] = (),
    on_update: Update | None = None,
) -> Any:
    """Distil `teacher` into `model` and return the student (a PEFT model, or the model itself).

    Writes `folder`/metrics.jsonl and checkpoints; goes on from the last whole checkpoint in
    `folder` if there is one. With LoRA the weights of ``model.model`` stay as they are; with full
    fine-tuning they are trained in place against `frozen`, a copy of the base (made if None).
    ``lora.extrapolation`` is applied to the returned student; metrics and checkpoints are of it as
    it was trained.

    What does not fit into memory is done again from the last checkpoint in smaller micro-batches,
    whose gradients add up to the same update.

    Raises InputError for a plan that cannot be made, see `plan_rows`, for prefilled answers of a
    model that thinks first, for K-FAC without anchors or with adapters that are split over
    processes, and where vLLM cannot be used, see `check_rollouts`; SafeSteerError where not
    even one completion at a time fits, where gradients are not finite, after which the student in
    memory is spoilt, and where the K-FAC statistics are not finite.
    """
    settings = settings or TrainSettings()
    check_rollouts(settings, model.model.device)
    if settings.prefill_share and model.chat.thinks:
        raise InputError(PREFILLS_AND_THOUGHTS.message)
    folder = Path(folder)
    too_long = settings.advanced.max_prompt_length
    if settings.prefill_share:
        too_long -= max(len(model.chat.answer_ids(words)) for words in settings.advanced.prefills)
    short = [m for m in harmful if len(model.chat.ids(m)) <= too_long]
    short_anchors = [m for m in anchors if len(model.chat.ids(m)) <= too_long]
    left_out = len(harmful) + len(anchors) - len(short) - len(short_anchors)
    if left_out:
        logging.getLogger(__name__).warning(
            "%d training prompts are longer than %d tokens and left out", left_out, too_long
        )
    rows = plan_rows(settings, short, short_anchors, seed)
    per_update = settings.completions_per_step
    updates = len(rows) // per_update
    window = min(settings.steps_per_generation, updates)
    rows += rows[: -updates % window * per_update]  # windows are whole; these are not trained on
    rows = for_processes(rows, window * per_update, distributed.count())
    layout = distributed.layout()
    if settings.method == "full" and frozen is None:
        frozen = copy.deepcopy(model.model)
    damping = settings.lora.kfac_damping if settings.method == "lora" else None
    if damping is not None:
        _check_kfac(short_anchors, layout)
    whitening: dict[str, torch.Tensor] = {}
    own = completions_per_process(settings, distributed.count())
    micro = _dividing(own, settings.per_device_train_batch_size or own)
    teacher_tokens = TEACHER_TOKENS

    def once() -> Any:
        checkpoint = distributed.on_main(lambda: _go_on_from(folder, layout, window))
        torch.manual_seed(seed)
        metrics = MetricsFile(folder, on_update)
        trainer = SafeSteerTrainer(
            model=student,
            args=_arguments(settings, folder, updates, micro, seed, report_to, student),
            train_dataset=Dataset.from_list(rows),
            chat=model.chat,
            teacher=teacher,
            safety_tokens=list(safety_tokens),
            divergence=settings.divergence,
            loss_tokens=settings.loss_tokens,
            anchor_tokens=settings.anchor_tokens,
            anchor_weight=settings.anchor_weight,
            base_model=frozen if settings.method == "full" else None,
            teacher_tokens=teacher_tokens,
            opening=(settings.short_rollout_length, settings.advanced.short_rollout_share)
            if settings.short_rollout_length is not None
            else None,
            updates_per_rollout=window,
            whitening=whitening,
            callbacks=[metrics],
        )
        if layout == "fsdp" and not trainer.accelerator.is_fsdp2:
            raise InputError(
                "FSDP was asked for, and accelerate gives none of version 2 here: set"
                " fsdp_version: 2, or, on a machine without accelerators, start copies of the"
                " model (--multi_gpu)"
            )
        # Progress and the table of updates are the caller's: these two print to the screen.
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        metrics.trainer = trainer
        try:
            with training_attention(model.model):
                trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            if trainer.use_vllm:
                release(trainer.vllm_generation)
        return student

    while True:
        student: Any = model.model
        if settings.method == "full":
            for part in (backbone(student), student.get_output_embeddings()):  # not what sees
                part.requires_grad_(True)
        else:
            steered = None if teacher.direction is None else teacher.direction.layer
            student = with_lora(student, settings, seed, steered)
            if damping is not None:
                # Measured once: what a smaller micro-batch goes on with has to be the same.
                whitening = whitening or measure_whitening(
                    model, student, short_anchors, damping, seed
                )
                start_whitened(student, whitening)  # and a checkpoint, if there is one, goes on
        # Other processes would wait for the passes that this one makes again.
        if (once() if distributed.count() > 1 else attempt(once)) is not None:
            if settings.method == "lora":
                extrapolate(student, settings.lora.extrapolation)
            return student.eval()
        if micro == 1:
            raise SafeSteerError(
                "out of memory while training on one completion at a time. Try:"
                " train.gradient_checkpointing=true, a smaller train.max_completion_length, a"
                " higher train.lora.first_layer, a smaller model, or a device with more memory"
            )
        micro, teacher_tokens = _dividing(own, micro // 2), teacher_tokens // 2
        logging.getLogger(__name__).warning(
            "out of memory while training: going on from the last checkpoint with micro-batches of"
            " %d, which add up to the same update",
            micro,
        )
        if settings.method == "full":
            model.model.load_state_dict(frozen.state_dict())
        else:
            student.unload()


def _check_kfac(anchors: Sequence[Any], layout: str) -> None:
    if layout != "whole":
        raise InputError(
            f"train.lora.kfac_damping needs whole adapters in every process, and {layout} splits"
            " them. Try: train.lora.kfac_damping=null, or copies of the model (ddp)"
        )
    if not anchors:
        raise InputError(KFAC_AND_ANCHORS.message)


def _dividing(completions: int, micro: int) -> int:
    """The largest micro-batch up to `micro` of which there are equal ones in an update.

    Equal ones, so that every completion weighs the same.
    """
    return next(n for n in range(min(micro, completions), 0, -1) if completions % n == 0)


def _go_on_from(folder: Path, layout: str, window: int) -> str | None:
    """The checkpoint that training goes on from, with the metrics up to it; None: the beginning.

    It lies between two windows, whose rollouts are not saved; the last update may end within one.

    Raises InputError for one whose weights are not laid out as those of this start.
    """
    checkpoint = last_checkpoint(folder, window)
    if checkpoint is not None:
        earlier = read_json(checkpoint / _MARKER).get("layout", "whole")
        if layout != earlier:
            raise InputError(
                f"{checkpoint} holds weights laid out as '{earlier}', and this start lays them out"
                f" as '{layout}'; start as before, or delete {folder} to train anew"
            )
    _keep_metrics(folder, _step(checkpoint) if checkpoint else 0)
    return None if checkpoint is None else str(checkpoint)


def last_checkpoint(folder: Path, every: int = 1) -> Path | None:
    """The last whole checkpoint after a multiple of `every` updates; cut ones are deleted."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _MARKER).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max((path for path in whole if _step(path) % every == 0), key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _keep_metrics(folder: Path, updates: int) -> None:
    """Drop the lines of updates after the checkpoint: they are about to be made again."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= updates:
                kept.append(line)
        except (ValueError, KeyError):  # the line that a kill cut short
            break
    write_text(path, "".join(line + "\n" for line in kept))


def _arguments(
    settings: TrainSettings,
    folder: Path,
    updates: int,
    micro: int,
    seed: int,
    report_to: Sequence[str],
    student: Any,
) -> DistillationConfig:
    parameter = next(student.parameters())
    # Weights that are going to be spread over devices wait on the CPU.
    cuda = parameter.is_cuda or (distributed.layout() != "whole" and torch.cuda.is_available())
    arguments = DistillationConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=completions_per_process(settings, distributed.count()) // micro,
        max_steps=updates,
        learning_rate=settings.learning_rate,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP_RATIO,
        max_grad_norm=MAX_GRAD_NORM,
        max_completion_length=settings.max_completion_length,
        temperature=ROLLOUT_TEMPERATURE,
        gradient_checkpointing=settings.gradient_checkpointing,
        # bfloat16 weights need no autocast, and on the CPU its backward is slower than float32.
        bf16=cuda and student.dtype == torch.float32,
        use_cpu=not cuda,
        shuffle_dataset=False,
        dataloader_pin_memory=cuda,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="steps",
        # A checkpoint falls between windows: the rollouts of one are not saved.
        save_steps=settings.advanced.save_steps
        + -settings.advanced.save_steps % settings.steps_per_generation,
        save_total_limit=2,
        report_to=list(report_to) or "none",
        project="safesteer",
        run_name=folder.absolute().parent.name or None,  # RUN/train: a tracker shows the run's name
        disable_tqdm=True,
        log_level_replica="error",  # as quiet as the main process is told to be
        seed=seed,
        data_seed=seed,
        **vllm_arguments(settings, student),
    )
    # One process uses one device, or those of a device map, however many there are.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class MetricsFile(TrainerCallback):
    """Writes a line of metrics.jsonl per update and marks whole checkpoints."""

    trainer: SafeSteerTrainer

    def __init__(self, folder: Path, on_update: Update | None = None) -> None:
        self.folder = folder
        self.on_update = on_update
        self._update_start = 0.0

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._update_start = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        if not logs or "loss" not in logs:
            return
        # The loss alone does not tell: the trainer leaves out what is not finite.
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            raise SafeSteerError(
                f"training stopped at update {state.global_step}: its gradients are not finite, and"
                " would have broken the model; what may do: a lower train.learning_rate"
            )
        if not state.is_world_process_zero:
            return
        seconds = dict(self.trainer.seconds)
        self.trainer.seconds.clear()
        total = time.perf_counter() - self._update_start  # the rollout is a part of the step
        step = seconds.get("step", 0.0)
        parts = {name: seconds.get(name, 0.0) for name in ("rollout", "teacher")}
        parts["student"] = max(0.0, step - parts["teacher"] - parts["rollout"])
        parts["optimizer"] = max(0.0, time.perf_counter() - self._update_start - step)
        tokens = logs.get("completion_length", 0.0) * (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        line = {
            "step": state.global_step,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "lr": logs.get("learning_rate"),
            "mass_student": logs.get("mass_student"),
            "mass_teacher": logs.get("mass_teacher"),
            "entropy": logs.get("entropy"),
            "completion_length": logs.get("completion_length"),
            "refusal_rate": logs.get("refusal_rate"),
            "anchor_refusal_rate": logs.get("anchor_refusal_rate"),
            **({"unfinished": logs["unfinished"]} if "unfinished" in logs else {}),
            "tokens_per_second": tokens / total if total > 0 else None,
            "seconds": {name: round(value, 3) for name, value in parts.items()},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.on_update is not None:
            self.on_update(line, state.max_steps)

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.trainer.accelerator.wait_for_everyone()  # each process writes its random states
        if state.is_world_process_zero:
            write_json(
                self.folder / f"checkpoint-{state.global_step}" / _MARKER,
                {"step": state.global_step, "layout": distributed.layout()},
            )
