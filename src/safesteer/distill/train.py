"""One training run: build the student, plan the steps, train, resume, retry in smaller batches."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from safesteer import distributed
from safesteer.config.rules import KFAC_AND_ANCHORS, PREFILLS_AND_THOUGHTS
from safesteer.config.settings import TrainSettings
from safesteer.distill.attention import training_attention
from safesteer.distill.checkpoints import prepare_resume
from safesteer.distill.config import SafeSteerConfig
from safesteer.distill.kfac import load_or_measure, measure_kfac, start_preconditioned
from safesteer.distill.lora import extrapolate, with_lora
from safesteer.distill.metrics import MetricsFile, OnStep
from safesteer.distill.plan import (
    Plan,
    TrainingPrompts,
    completions_per_process,
    longest_prompt,
    plan_training,
)
from safesteer.distill.teacher_pass import TEACHER_BATCH_TOKENS
from safesteer.distill.trainer import SafeSteerTrainer
from safesteer.distill.vllm import check_rollouts, release
from safesteer.errors import InputError, SafeSteerError, without_advice
from safesteer.models.chat import Message
from safesteer.models.context import PromptTooLong, fitting_prompts
from safesteer.models.layers import backbone, without_adapter
from safesteer.models.load import ChatModel
from safesteer.models.oom import attempt
from safesteer.teacher import Teacher

_log = logging.getLogger(__name__)

_KFAC = "kfac/matrices.safetensors"


@dataclass(frozen=True)
class TrainingOutput:
    """Where a training writes, and who follows it.

    Attributes:
        folder: gets metrics.jsonl and the checkpoints.
        report_to: trackers, such as tensorboard or wandb.
        on_step: called after every step with its line of metrics.jsonl and the number of steps.
        on_progress: called with (what, done, total) while something is measured before the steps.
    """

    folder: str | Path
    report_to: Sequence[str] = ()
    on_step: OnStep | None = None
    on_progress: Callable[[str, int, int], None] | None = None


def train(
    model: ChatModel,
    teacher: Teacher,
    safety_tokens: Sequence[int],
    prompts: TrainingPrompts,
    settings: TrainSettings | None = None,
    *,
    output: TrainingOutput | str | Path,
    seed: int = 0,
    base_model: Any = None,
) -> Any:
    """Distill `teacher` into `model`.

    Training resumes from the last complete checkpoint in the output folder. A step that does not
    fit into memory is repeated from there in smaller micro-batches, whose gradients add up to the
    same step.

    Args:
        model: the model to train. LoRA keeps its weights; full fine-tuning changes them in place.
        teacher: how the base weights become the teacher.
        safety_tokens: ids of the safety tokens S, [K].
        prompts: harmful prompts, anchors and those of them to repair; too long ones are skipped.
        settings: the section `train`; the recipe `default` if None.
        output: where to write, a folder or a `TrainingOutput`.
        seed: decides adapters, order, rollouts.
        base_model: for full fine-tuning a frozen copy of the base, which is made if None.

    Returns:
        The student in evaluation mode: a PEFT model, or the model itself. `lora.extrapolation` is
        applied to it, and not to metrics and checkpoints.

    Raises:
        InputError: settings, prompts, model, processes and checkpoint do not go together.
        SafeSteerError: not even one completion at a time fits into memory, or gradients or K-FAC
            statistics are not finite. The student in memory is then spoiled.
    """
    settings = settings or TrainSettings()
    output = output if isinstance(output, TrainingOutput) else TrainingOutput(output)
    full = settings.method == "full"
    prompts = _short_enough(prompts, model, teacher, settings)
    _check(model, settings, prompts)
    plan = plan_training(settings, prompts, seed, teacher.repair)
    if full and base_model is None:
        base_model = copy.deepcopy(model.model)
    completions = completions_per_process(settings, distributed.world_size())
    micro_batch = _even_batch(completions, settings.per_device_train_batch_size or completions)
    batches = _Batches(completions, micro_batch, TEACHER_BATCH_TOKENS)
    preconditioner: dict[str, torch.Tensor] = {}
    while True:
        student = _student(model, settings, seed, teacher)
        if not full and settings.lora.kfac_damping is not None:
            preconditioner = preconditioner or _preconditioner(
                model, student, prompts.kept, settings, seed, output
            )
            start_preconditioned(student, preconditioner)
        run = partial(
            _run,
            student,
            _config(settings, student, plan, batches, output, seed),
            output,
            train_dataset=Dataset.from_list(plan.rows),
            processing_class=model.chat,
            teacher=teacher,
            safety_tokens=safety_tokens,
            base_model=base_model if full else None,
            preconditioner=preconditioner,
        )
        # Several processes make their passes in step, so none of them can repeat its own.
        finished = attempt(run) if distributed.world_size() == 1 else run()
        if finished:
            break
        batches = _smaller(batches)
        if full:
            model.model.load_state_dict(base_model.state_dict())
        else:
            student.unload()
    shutil.rmtree((Path(output.folder) / _KFAC).parent, ignore_errors=True)
    if not full:
        extrapolate(student, settings.lora.extrapolation)
    return student.eval()


def _student(model: ChatModel, settings: TrainSettings, seed: int, teacher: Teacher) -> Any:
    """The model with trainable weights of its text part, or with fresh adapters."""
    if settings.method == "full":
        for part in (backbone(model.model), model.model.get_output_embeddings()):
            part.requires_grad_(True)
        return model.model
    steered = None if teacher.direction is None else teacher.direction.layer
    return with_lora(model.model, settings, seed, steered)


def _preconditioner(
    model: ChatModel,
    student: Any,
    anchors: Sequence[Sequence[Message]],
    settings: TrainSettings,
    seed: int,
    output: TrainingOutput,
) -> dict[str, torch.Tensor]:
    """The K-FAC preconditioner of a fresh student, kept until the training is finished.

    A checkpoint continues with the preconditioner that it began with.
    """
    damping, report = settings.lora.kfac_damping, output.on_progress
    assert damping is not None
    factors = dict(student.named_parameters())
    trained = sorted(name for name, factor in factors.items() if factor.requires_grad)
    found = load_or_measure(
        Path(output.folder) / _KFAC,
        [model.sha256, trained, [list(each) for each in anchors], damping, seed],
        lambda: measure_kfac(
            model,
            student,
            anchors,
            damping,
            seed,
            progress=report and partial(report, "K-FAC statistics"),
        ),
    )
    moved: dict[Any, torch.Tensor] = {}
    for name, matrix in found.items():  # those that factors share are moved once
        place = (id(matrix), factors[name].device)
        if place not in moved:
            moved[place] = matrix.to(place[1])
        found[name] = moved[place]
    return found


def _run(student: Any, config: SafeSteerConfig, output: TrainingOutput, **arguments: Any) -> bool:
    """Train to the end, from the last checkpoint if there is one, and print nothing."""
    folder, layout, window = Path(output.folder), distributed.layout(), config.steps_per_generation
    checkpoint = distributed.on_main(lambda: prepare_resume(folder, layout, window))
    torch.manual_seed(config.seed)
    trainer = SafeSteerTrainer(student, config, **arguments)
    if layout == "fsdp" and not trainer.accelerator.is_fsdp2:
        raise InputError(
            "FSDP was asked for, and accelerate provides no FSDP 2 here. Try: fsdp_version: 2, or,"
            " on a machine without accelerators, copies of the model (--multi_gpu)"
        )
    for printing in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printing)
    trainer.add_callback(MetricsFile(trainer, folder, output.on_step))
    try:
        with training_attention(without_adapter(student)):
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        if trainer.use_vllm:
            release(trainer.vllm_generation)
    return True


def _config(
    settings: TrainSettings,
    student: Any,
    plan: Plan,
    batches: _Batches,
    output: TrainingOutput,
    seed: int,
) -> SafeSteerConfig:
    return SafeSteerConfig.from_settings(
        settings,
        student,
        output_dir=str(output.folder),
        run_name=Path(output.folder).absolute().parent.name or None,  # RUN/train is shown as RUN
        report_to=list(output.report_to) or "none",
        seed=seed,
        data_seed=seed,
        max_steps=plan.steps,
        steps_per_generation=plan.window,
        per_device_train_batch_size=batches.micro_batch,
        gradient_accumulation_steps=batches.completions // batches.micro_batch,
        teacher_batch_tokens=batches.teacher_tokens,
    )


class _Batches(NamedTuple):
    """How much goes through the models at once."""

    completions: int  # of a step, on each process
    micro_batch: int  # completions in a pass of the student
    teacher_tokens: int  # tokens in a pass of the teacher, about


def _smaller(batches: _Batches) -> _Batches:
    """Halve what goes through the models at once, with a warning."""
    if batches.micro_batch == 1:
        raise SafeSteerError(
            "out of memory while training on one completion at a time. Try:"
            " train.gradient_checkpointing=true, a smaller train.max_completion_length, a higher"
            " train.lora.first_layer, a smaller model, or a device with more memory"
        )
    micro_batch = _even_batch(batches.completions, batches.micro_batch // 2)
    _log.warning(
        "out of memory while training: resuming from the last checkpoint with micro-batches of %d,"
        " which add up to the same step",
        micro_batch,
    )
    return _Batches(batches.completions, micro_batch, batches.teacher_tokens // 2)


def _even_batch(completions: int, most: int) -> int:
    """The largest micro-batch up to `most` that divides a step evenly: all weigh the same."""
    return next(n for n in range(min(most, completions), 0, -1) if completions % n == 0)


def _short_enough(
    prompts: TrainingPrompts, model: ChatModel, teacher: Teacher, settings: TrainSettings
) -> TrainingPrompts:
    """The prompts that fit into `max_prompt_length`, and with an answer into the model's positions.

    Both with the longest prefill, and the second also with the teacher's context.
    """
    chat, longest, prefill = model.chat, longest_prompt(settings, model.chat), ""
    if settings.prefill_share:
        prefill = max(settings.advanced.prefills, key=lambda text: len(chat.answer_ids(text)))
    answer = len(chat.answer_ids(prefill)) + settings.max_completion_length

    def fitting(sets: Sequence[Sequence[Message]], what: str, taught: bool) -> list[Any]:
        if not sets:
            return []
        read = [chat.ids(messages) for messages in sets]
        kept = [sets[row] for row in fitting_prompts(model.model, read, answer, what, longest)]
        if not taught or not teacher.context:
            return kept
        read = [chat.ids(teacher.messages(messages, prefill)) for messages in kept]
        what += " with the teacher's context"
        return [kept[row] for row in fitting_prompts(model.model, read, answer, what)]

    try:
        harmful = fitting(prompts.harmful, "harmful training prompts", taught=True)
    except PromptTooLong as error:
        raise InputError(
            f"no harmful training prompts are left to train on: {without_advice(error)}. Try:"
            " shorter prompts, a larger train.advanced.max_prompt_length, or a smaller"
            " train.max_completion_length"
        ) from None
    try:
        anchors = fitting(prompts.anchors, "anchors", taught=False)
    except PromptTooLong:
        if settings.anchors_per_step:
            raise
        anchors = []
    return replace(prompts, harmful=harmful, anchors=anchors)


def _check(model: ChatModel, settings: TrainSettings, prompts: TrainingPrompts) -> None:
    """Raise InputError for settings that do not fit the model, the prompts or the processes."""
    check_rollouts(settings, model.model.device)
    if settings.prefill_share and model.chat.thinks:
        raise InputError(PREFILLS_AND_THOUGHTS.message)
    if settings.method == "full" or settings.lora.kfac_damping is None:
        return
    layout = distributed.layout()
    if layout != "replicated":
        raise InputError(
            f"train.lora.kfac_damping needs whole adapters in every process, and {layout} splits"
            " them. Try: train.lora.kfac_damping=null, or copies of the model (ddp)"
        )
    if not prompts.kept:
        raise InputError(KFAC_AND_ANCHORS.message)
