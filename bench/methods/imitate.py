"""SFT and DPO students: TRL's trainers on fixed answers to the prompts of a distillation.

The refusal is the first refusing opening of the settings; the base's answers are greedy and as long
as full-length rollouts. A prefilled answer continues from the prefill in both. Prompts are not
skipped for their length (`train.advanced.max_prompt_length`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from safesteer.config.settings import Settings
from safesteer.distill.attention import training_attention
from safesteer.distill.config import MAX_GRAD_NORM, WARMUP_RATIO
from safesteer.distill.kfac import start_preconditioned, step_preconditioned
from safesteer.distill.lora import with_lora
from safesteer.distill.plan import plan_rows
from safesteer.models.chat import Message
from safesteer.models.generate import Decoding, generate
from safesteer.models.load import ChatModel
from safesteer.models.lora_dtype import compute_in_model_dtype

Prompts = Sequence[Sequence[Message]]


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt, the answer to learn, and the one that DPO rejects."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def imitate(
    model: ChatModel,
    settings: Settings,
    kind: str,
    harmful: Prompts,
    anchors: Prompts,
    measure_kfac: Callable[..., Any],
    folder: Path,
) -> Any:
    """Train a LoRA student by `kind`, "sft" or "dpo", and return it as a PEFT model.

    Args:
        model: the base model.
        settings: of the method and its seed.
        harmful: harmful training prompts.
        anchors: prompts of anchors, whose chosen answers are the base's.
        measure_kfac: `safesteer.distill.kfac.measure_kfac`, or a cached one.
        folder: where the trainer may write.
    """
    train = settings.train
    rows = plan_rows(train, harmful, anchors, settings.seed)
    examples = make_examples(model, settings, rows)
    student = with_lora(model.model, train, settings.seed)
    damping, factors = train.lora.kfac_damping, {}
    if damping is not None:
        factors = measure_kfac(model, student, anchors, damping, settings.seed)
        start_preconditioned(student, factors)
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": train.completions_per_step,
        "max_steps": len(rows) // train.completions_per_step,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARMUP_RATIO,
        "max_grad_norm": MAX_GRAD_NORM,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": model.model.device.type == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings.seed,
    }
    make = sft_trainer if kind == "sft" else dpo_trainer
    trainer = make(student, arguments, examples, model.chat.tokenizer)
    if factors:
        parameters = dict(trainer.model.named_parameters())
        step_preconditioned(trainer.create_optimizer(), parameters, factors)
    compute_in_model_dtype(trainer.model)  # DPO adds an adapter of its own, for the reference
    with training_attention(model.model):
        trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model).eval()


def make_examples(
    model: ChatModel, settings: Settings, rows: Sequence[dict[str, Any]]
) -> list[Example]:
    """One example per row of a training plan (`safesteer.distill.plan.plan_rows`)."""
    chat = model.chat
    asked = [(json.dumps(row["prompt"]), row["prefill"]) for row in rows]
    prompts = {
        key: chat.ids(row["prompt"], row["prefill"]) for key, row in zip(asked, rows, strict=True)
    }
    generated = generate(
        model.model,
        chat.tokenizer,
        list(prompts.values()),
        Decoding(settings.train.max_completion_length),
        batch_size=64,
    )
    answers = dict(zip(prompts, generated, strict=True))
    refusal = settings.direction.advanced.refusing_openings[0]
    examples = []
    for key, row in zip(asked, rows, strict=True):
        words = f" {refusal}" if row["prefill"] else refusal
        own, other = answers[key], [*chat.answer_ids(words), chat.tokenizer.eos_token_id]
        chosen, rejected = (own, other) if row["anchor"] else (other, own)
        examples.append(Example(prompts[key], chosen, rejected))
    return examples


def sft_trainer(
    student: Any, arguments: dict[str, Any], examples: Sequence[Example], tokenizer: Any
) -> Any:
    """TRL's SFTTrainer, with a loss on the chosen answers alone."""
    from trl import SFTConfig, SFTTrainer

    data = [
        {"input_ids": e.prompt + e.chosen, "labels": [-100] * len(e.prompt) + e.chosen}
        for e in examples
    ]
    return SFTTrainer(
        student,
        SFTConfig(**arguments),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )


def dpo_trainer(
    student: Any, arguments: dict[str, Any], examples: Sequence[Example], tokenizer: Any
) -> Any:
    """TRL's DPOTrainer."""
    from trl import DPOConfig, DPOTrainer

    text = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    trainer = DPOTrainer(
        student,
        args=DPOConfig(**arguments),
        train_dataset=Dataset.from_list([text]),
        processing_class=tokenizer,
    )
    # From texts it would append an end of turn to every answer, also to one that was cut.
    trainer.train_dataset = Dataset.from_list(
        [
            {"prompt_ids": e.prompt, "chosen_ids": e.chosen, "rejected_ids": e.rejected}
            for e in examples
        ]
    )
    return trainer
