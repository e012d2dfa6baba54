"""Configuration of `SafeSteerTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from trl import DistillationConfig

from safesteer import distributed
from safesteer.config.settings import Divergence, LossTokens, TrainSettings
from safesteer.distill.losses import DIVERGENCES
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


@dataclass
class SafeSteerConfig(DistillationConfig):
    r"""Configuration class for the [`SafeSteerTrainer`].

    Extends [`~trl.DistillationConfig`] with the parameters of SafeSteer. Defaults are those of the
    recipe `default`; `per_device_train_batch_size` x `gradient_accumulation_steps` x processes is
    the number of completions in a step.

    Parameters:
        divergence (`str`, *optional*, defaults to `"tail_forward"`):
            Divergence between student and teacher, a name in
            [`~safesteer.distill.losses.DIVERGENCES`].
        loss_tokens (`str`, *optional*, defaults to `"safety"`):
            Tokens that the divergence is computed on: the safety tokens (`"safety"`) or the whole
            vocabulary (`"all"`).
        anchor_tokens (`str`, *optional*, defaults to `"all"`):
            The same for anchors. `"all"` is KL(student || base), whatever the divergence.
        anchor_weight (`float`, *optional*, defaults to `4.0`):
            Weight of the loss of anchors; the mean stays over all completions.
        short_rollout_length (`int`, *optional*, defaults to `5`):
            Number of tokens in a short rollout. With `None` every rollout has full length. A model
            that thinks first is not cut; the loss then covers this many tokens of its answers.
        short_rollout_share (`float`, *optional*, defaults to `0.8`):
            Share of the generations with short rollouts; the others lie evenly between them.
        steps_per_generation (`int`, *optional*, defaults to `1`):
            Number of optimizer steps whose rollouts are generated, and read by the teacher, at
            once. `1` is strictly on-policy.
        rollout_batch_size (`int`, *optional*, defaults to `64`):
            Number of rollouts generated in one batch; halved when memory runs out.
        teacher_batch_tokens (`int`, *optional*, defaults to `4096`):
            Approximate number of tokens in one forward pass of the teacher.

    > [!NOTE]
    > These parameters have default values different from [`~trl.DistillationConfig`]:
    > `learning_rate` (`5e-4`), `lr_scheduler_type` (`"cosine"`), `warmup_steps` (`0.1`),
    > `max_completion_length` (`64`), `bf16` and `gradient_checkpointing` (`False`), `logging_steps`
    > (`1`).
    """

    # Parameters whose default values are overridden from DistillationConfig
    learning_rate: float = field(
        default=5e-4, metadata={"help": "The initial learning rate for AdamW."}
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "The learning rate schedule after the warmup."}
    )
    warmup_steps: float = field(
        default=WARMUP_RATIO,
        metadata={"help": "The number of warmup steps, or below 1 their share of all steps."},
    )
    max_completion_length: int = field(
        default=64, metadata={"help": "Maximum number of tokens to generate per completion."}
    )
    bf16: bool = field(
        default=False,
        metadata={
            "help": "Whether to compute float32 weights in bfloat16. Weights that are bfloat16"
            " already need no mixed precision."
        },
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata={
            "help": "Whether to save memory by computing activations again in the backward pass."
        },
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every X optimizer steps."})

    # Parameters that control the loss
    divergence: Divergence = field(
        default="tail_forward",
        metadata={"help": "The divergence between student and teacher that is minimized."},
    )
    loss_tokens: LossTokens = field(
        default="safety",
        metadata={
            "help": "Whether the divergence is computed on the safety tokens ('safety') or on the"
            " whole vocabulary ('all')."
        },
    )
    anchor_tokens: LossTokens = field(
        default="all",
        metadata={
            "help": "The same for anchors. With 'all' their loss is KL(student || base), whatever"
            " the divergence."
        },
    )
    anchor_weight: float = field(
        default=4.0,
        metadata={"help": "Weight of the loss of anchors. The mean stays over all completions."},
    )

    # Parameters that control generation
    short_rollout_length: int | None = field(
        default=5,
        metadata={
            "help": "Number of tokens in a short rollout. With None every rollout has full length."
        },
    )
    short_rollout_share: float = field(
        default=0.8,
        metadata={
            "help": "Share of the generations with short rollouts. The others lie evenly between"
            " them."
        },
    )
    steps_per_generation: int = field(
        default=1,
        metadata={
            "help": "Number of optimizer steps whose rollouts are generated at once. 1 is strictly"
            " on-policy."
        },
    )
    rollout_batch_size: int = field(
        default=64,
        metadata={
            "help": "Number of rollouts generated in one batch. It is halved when memory runs out."
        },
    )
    teacher_batch_tokens: int = field(
        default=TEACHER_BATCH_TOKENS,
        metadata={"help": "Approximate number of tokens in one forward pass of the teacher."},
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
