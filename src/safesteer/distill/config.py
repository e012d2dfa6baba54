"""Configuration of `SafeSteerTrainer`."""

# ruff: noqa: RUF009 - `_option` makes a field

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from datasets import IterableDataset
from trl import DistillationConfig

from safesteer import distributed
from safesteer.config.settings import Divergence, LossTokens, TrainSettings
from safesteer.distill.losses import DIVERGENCES
from safesteer.distill.rows import check_strengths
from safesteer.distill.teacher_pass import TEACHER_BATCH_TOKENS
from safesteer.distill.vllm import vllm_arguments
from safesteer.errors import InputError, nearest

# Values of every recipe, the published ones included.
WEIGHT_DECAY, WARMUP_RATIO, MAX_GRAD_NORM = 0.0, 0.1, 1.0
ROLLOUT_TEMPERATURE = 1.0  # the loss is on-policy only at 1

_CHOICES = {
    "divergence": tuple(DIVERGENCES),
    "loss_tokens": ("safety", "all"),
    "anchor_tokens": ("safety", "all"),
}
_AT_LEAST = {
    "anchor_weight": 0,
    "short_rollout_length": 1,
    "short_rollout_share": 0,
    "steps_per_generation": 1,
    "rollout_batch_size": 1,
    "teacher_batch_tokens": 1,
}
# TRL's options that would draw rollouts from another distribution than the student's.
_OFF_POLICY = ("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SafeSteerConfig(DistillationConfig):
    """Configuration of `SafeSteerTrainer`: that of `trl.DistillationTrainer` with SafeSteer's own.

    The help of each field describes it; defaults are those of the recipe `default`. A step has
    `per_device_train_batch_size` x `gradient_accumulation_steps` x processes completions.

    Raises:
        InputError: a value is unknown or out of range.
    """

    # TRL's, with another default.
    learning_rate: float = _option(5e-4, "Initial learning rate of AdamW.")
    lr_scheduler_type: str = _option("cosine", "Learning rate schedule after the warmup.")
    warmup_steps: float = _option(
        WARMUP_RATIO, "Number of warmup steps, or below 1 their share of all steps."
    )
    max_completion_length: int = _option(64, "Most tokens in a completion.")
    bf16: bool = _option(
        False,
        "Whether to compute float32 weights in bfloat16. Weights that are bfloat16 already need no"
        " mixed precision.",
    )
    gradient_checkpointing: bool = _option(
        False, "Whether to save memory by computing activations again in the backward pass."
    )
    logging_steps: float = _option(1, "Log every X optimizer steps.")

    # The loss
    divergence: Divergence = _option(
        "tail_forward", "Divergence between student and teacher that is minimized."
    )
    loss_tokens: LossTokens = _option(
        "safety",
        "Whether the divergence is computed on the safety tokens ('safety') or on the whole"
        " vocabulary ('all').",
    )
    anchor_tokens: LossTokens = _option(
        "all",
        "The same for anchors. With 'all' their loss is KL(student || base), whatever the"
        " divergence.",
    )
    anchor_weight: float = _option(
        4.0, "Weight of the loss of anchors. The mean stays over all completions."
    )

    # Rollouts
    short_rollout_length: int | None = _option(
        5,
        "Tokens in a short rollout. With None every rollout has full length. A model that thinks"
        " first is not cut; the loss then covers this many tokens of its answers.",
    )
    short_rollout_share: float = _option(
        0.8, "Share of the generations with short rollouts. The others lie evenly between them."
    )
    steps_per_generation: int = _option(
        1,
        "Optimizer steps whose rollouts are generated, and read by the teacher, at once. 1 is"
        " strictly on-policy.",
    )
    prompt_gradient: bool = _option(
        True,
        "Whether gradients also flow through the prompts. Otherwise a prompt is read once per"
        " generation, and a step runs over its last tokens and the answer.",
    )
    rollout_batch_size: int = _option(
        64, "Rollouts generated in one batch. It is halved when memory runs out."
    )
    teacher_batch_tokens: int = _option(
        TEACHER_BATCH_TOKENS, "Approximate number of tokens in one forward pass of the teacher."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise InputError(
                    f"{name} = '{value}' is unknown{nearest(str(value), known)}. Try:"
                    f" {', '.join(known)}"
                )
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} = {value} is too small. Try: {least} or more")
        if self.short_rollout_share > 1:
            raise InputError(
                f"short_rollout_share = {self.short_rollout_share} is no share. Try: 0 to 1"
            )
        defaults = {each.name: each.default for each in fields(self)}
        for name in _OFF_POLICY:
            if getattr(self, name, None) != defaults.get(name):
                raise InputError(
                    f"{name} = {getattr(self, name)}: rollouts are samples of the student itself,"
                    f" or the loss is not on-policy. Try: without {name}"
                )
        if self.max_completion_length is None:
            raise InputError("max_completion_length = None: rollouts need a limit. Try: 64")

    @classmethod
    def from_settings(
        cls, settings: TrainSettings, student: Any, **changes: Any
    ) -> SafeSteerConfig:
        """Translate the settings of a run.

        Args:
            settings: the section `train`.
            student: the model to train, whose device, dtype and context length are read.
            changes: fields that the settings do not have, such as `output_dir`, or other values.
        """
        parameter = next(student.parameters())
        # Weights that will be split over devices wait on the CPU.
        split = distributed.layout() != "replicated"
        cuda = parameter.is_cuda or (split and torch.cuda.is_available())
        save_steps = settings.advanced.save_steps
        values = {
            "max_steps": settings.max_steps or -1,
            "learning_rate": settings.learning_rate,
            "weight_decay": WEIGHT_DECAY,
            "warmup_steps": WARMUP_RATIO,
            "max_grad_norm": MAX_GRAD_NORM,
            "max_completion_length": settings.max_completion_length,
            "temperature": ROLLOUT_TEMPERATURE,
            "gradient_checkpointing": settings.gradient_checkpointing,
            # bfloat16 weights need no autocast, and on the CPU its backward is slower than float32.
            "bf16": cuda and student.dtype == torch.float32,
            "use_cpu": not cuda,
            "dataloader_pin_memory": cuda,
            "divergence": settings.divergence,
            "loss_tokens": settings.loss_tokens,
            "anchor_tokens": settings.anchor_tokens,
            "anchor_weight": settings.anchor_weight,
            "short_rollout_length": settings.short_rollout_length,
            "short_rollout_share": settings.advanced.short_rollout_share,
            "steps_per_generation": settings.steps_per_generation,
            "prompt_gradient": settings.advanced.prompt_gradient,
            "shuffle_dataset": False,  # the plan of a run is in its order
            "logging_first_step": True,
            "save_strategy": "steps",
            # A checkpoint falls between generations, whose rollouts are not saved.
            "save_steps": save_steps + -save_steps % settings.steps_per_generation,
            "save_total_limit": 2,
            "project": "safesteer",
            "disable_tqdm": True,
            "log_level_replica": "error",  # as quiet as the main process
            **vllm_arguments(settings, student),
        }
        config = cls(**{**values, **changes})
        # One process uses one device, or those of a device map, however many there are.
        config._n_gpu = min(config.n_gpu, 1)
        return config


def check_arguments(
    model: Any,
    args: SafeSteerConfig,
    train_dataset: Any,
    base_model: Any,
    preconditioner: Mapping[str, torch.Tensor] | None,
) -> None:
    """Raise InputError for arguments of the trainer that do not go together."""
    if not isinstance(args, SafeSteerConfig):
        raise InputError(f"args is a {type(args).__name__}. Try: SafeSteerConfig(...)")
    if args.steps_per_generation > 1 and isinstance(train_dataset, IterableDataset):
        raise InputError(
            f"steps_per_generation = {args.steps_per_generation} needs a dataset with a length."
            " Try: steps_per_generation=1"
        )
    check_strengths(train_dataset)
    if preconditioner and args.weight_decay:
        raise InputError(
            f"weight_decay = {args.weight_decay} does not go with a preconditioner. Try:"
            " weight_decay=0"
        )
    if base_model is None and not hasattr(model, "disable_adapter"):
        raise InputError(
            "training all weights would train the teacher along. Try: base_model=, a frozen copy of"
            " the model, or a PEFT model"
        )
