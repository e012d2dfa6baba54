"""One training run: builds the student, plans the updates, drives the trainer, keeps the metrics.

Checkpoints are transformers' own; a marker that is written last tells a whole checkpoint from one
that a kill cut short. Resuming continues from the last whole one with the same losses.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import DistillationConfig

from safesteer import distributed
from safesteer.config.rules import KFAC_AND_ANCHORS, PREFILLS_AND_THOUGHTS
from safesteer.config.settings import TrainSettings
from safesteer.distill.attention import training_attention
from safesteer.distill.checkpoints import prepare_resume
from safesteer.distill.kfac import measure_kfac, start_preconditioned
from safesteer.distill.lora import extrapolate, with_lora
from safesteer.distill.metrics import MetricsFile, OnStep
from safesteer.distill.plan import completions_per_process, for_processes, plan_rows
from safesteer.distill.teacher_pass import TEACHER_BATCH_TOKENS
from safesteer.distill.trainer import SafeSteerTrainer
from safesteer.distill.vllm import check_rollouts, release, vllm_arguments
from safesteer.errors import InputError, SafeSteerError
from safesteer.models.chat import Message
from safesteer.models.layers import backbone
from safesteer.models.load import ChatModel
from safesteer.models.oom import attempt
from safesteer.teacher import Teacher

# AdamW's and the schedule's values in every recipe, the published ones included.
WEIGHT_DECAY, WARMUP_RATIO, MAX_GRAD_NORM = 0.0, 0.1, 1.0
ROLLOUT_TEMPERATURE = 1.0  # the loss is on-policy only at 1


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
    on_update: OnStep | None = None,
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
    rows = for_processes(rows, window * per_update, distributed.world_size())
    layout = distributed.layout()
    if settings.method == "full" and frozen is None:
        frozen = copy.deepcopy(model.model)
    damping = settings.lora.kfac_damping if settings.method == "lora" else None
    if damping is not None:
        _check_kfac(short_anchors, layout)
    preconditioner: dict[str, torch.Tensor] = {}
    own = completions_per_process(settings, distributed.world_size())
    micro = _dividing(own, settings.per_device_train_batch_size or own)
    teacher_tokens = TEACHER_BATCH_TOKENS

    def once() -> Any:
        checkpoint = distributed.on_main(lambda: prepare_resume(folder, layout, window))
        torch.manual_seed(seed)
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
            preconditioner=preconditioner,
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
        trainer.add_callback(MetricsFile(trainer, folder, on_update))
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
                preconditioner = preconditioner or measure_kfac(
                    model, student, short_anchors, damping, seed
                )
                start_preconditioned(student, preconditioner)  # before a checkpoint is loaded
        # Other processes would wait for the passes that this one makes again.
        if (once() if distributed.world_size() > 1 else attempt(once)) is not None:
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
    if layout != "replicated":
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
    cuda = parameter.is_cuda or (distributed.layout() != "replicated" and torch.cuda.is_available())
    arguments = DistillationConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=completions_per_process(settings, distributed.world_size())
        // micro,
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
