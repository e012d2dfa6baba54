"""A training of the tiny model in seconds, and the slow form of its loss."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny import plain_training

from safesteer.config.settings import TrainSettings
from safesteer.direction.vector import Direction
from safesteer.distill.plan import TrainingPrompts
from safesteer.distill.train import TrainingOutput, train
from safesteer.teacher import Teacher

TOKENS = [10, 40, 77, 120, 200, 305]
CONTEXT = ({"role": "system", "content": "Refuse what is harmful."},)
TIMING = {"seconds", "tokens_per_second"}


def make_settings(**changes: Any) -> TrainSettings:
    advanced = {"save_steps": changes.pop("save_steps", 2)}
    return plain_training(
        **{
            "max_steps": 2,
            "prompts_per_step": 4,
            "num_generations": 2,
            "anchor_share": 0.5,
            "learning_rate": 1e-2,
            "max_completion_length": 7,
            "lora": {"r": 4, "alpha": 8},
            "advanced": {**advanced, **changes.pop("advanced", {})},
            **changes,
        }
    )


def make_teacher(layer: int = 2) -> Teacher:
    generator = torch.Generator().manual_seed(7)
    return Teacher(Direction(torch.randn(32, generator=generator) * 2, layer), CONTEXT)


def prompts(name: str, count: int = 6) -> list[tuple[dict[str, str], ...]]:
    return [
        ({"role": "user", "content": f"{name} request {'very ' * i}{i}"},) for i in range(count)
    ]


def run(
    model: Any, folder: Path, teacher: Teacher | None = None, **changes: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """Train, and return the student and the lines of metrics.jsonl."""
    # Many tokens end a turn, so that completions have different lengths.
    model.model.generation_config.eos_token_id = [model.tokenizer.eos_token_id, *range(100, 160)]
    extra = {key: changes.pop(key) for key in ("base_model", "seed") if key in changes}
    repaired = changes.pop("repaired", ())
    output = TrainingOutput(folder, on_step=changes.pop("on_step", None))
    student = train(
        model,
        teacher or make_teacher(),
        TOKENS,
        TrainingPrompts(prompts("harmful"), prompts("harmless"), repaired),
        make_settings(**changes),
        output=output,
        **extra,
    )
    return student, read_metrics(folder)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_timing(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def weights(student: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in student.named_parameters()}


@torch.no_grad()
def log_probs(
    model: Any, ids: list[int], count: int, vector: Any = None, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities [count, V] of the last `count` tokens of one unpadded sequence."""
    handle = None
    if vector is not None:
        block = model.model.layers[vector.layer]
        handle = block.register_forward_pre_hook(
            lambda module, args: (args[0] + vector.coefficient * vector.vector, *args[1:])
        )
    logits = model(torch.tensor([ids])).logits[0].double()
    if handle is not None:
        handle.remove()
    return torch.log_softmax(logits / temperature, dim=-1)[-count - 1 : -1]


def slow_loss(
    update: dict[str, Any],
    base: Any,
    chat: Any,
    divergence: str,
    anchor_tokens: str = "safety",
    temperature: float = 1.0,
    loss_tokens: str = "safety",
    context: tuple[dict[str, str], ...] = CONTEXT,
    anchor_weight: float = 1.0,
) -> dict[str, float]:
    """The loss of an update as the paper writes it: sequence by sequence, token by token."""
    teacher = make_teacher()
    total, masses_s, masses_t, entropies = 0.0, [], [], []
    for row, completion in zip(update["rows"], update["completions"], strict=True):
        count = len(completion)
        log_s = log_probs(update["student"], chat.ids(row["prompt"]) + completion, count)
        if row["anchor"]:
            away = row.get("strength", 0.0)
            vector = replace(teacher.direction, coefficient=away) if away else None
            log_t = log_probs(base, chat.ids(row["prompt"]) + completion, count, vector)
        else:
            taught = chat.ids([*context, *row["prompt"]]) + completion
            log_t = log_probs(base, taught, count, teacher.direction, temperature)
        sums = 0.0
        for position in range(count):
            whole = (anchor_tokens if row["anchor"] else loss_tokens) == "all"
            whole = whole or row.get("strength", 0.0) < 0
            ids = list(range(log_s.shape[1])) if whole else TOKENS
            p_s, p_t = log_s[position, ids].exp().tolist(), log_t[position, ids].exp().tolist()
            for s, t in zip(p_s, p_t, strict=True):
                if row["anchor"] or divergence != "forward":
                    sums += s * math.log(s / t)
                if not row["anchor"] and divergence in ("forward", "tail_forward"):
                    sums += t * math.log(t / s)
                if divergence == "generalized" and not whole:
                    sums += t - s
            if not row["anchor"]:
                masses_s.append(log_s[position, TOKENS].exp().sum().item())
                masses_t.append(log_t[position, TOKENS].exp().sum().item())
            entropies.append(-(log_s[position].exp() * log_s[position]).sum().item())
        total += (anchor_weight if row["anchor"] else 1.0) * sums / count

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {
        "loss": total / len(update["rows"]),
        "mass_student": mean(masses_s),
        "mass_teacher": mean(masses_t),
        "entropy": mean(entropies),
    }


def lora_from(first_layer: int | str, targets: str | list[str] = "all-linear") -> dict[str, Any]:
    return {"r": 4, "alpha": 8, "first_layer": first_layer, "target_modules": targets}


def drop_out(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Adapters with dropout, which no setting makes, draw random numbers in every pass."""
    monkeypatch.setattr(peft, "LoraConfig", partial(peft.LoraConfig, lora_dropout=share))
