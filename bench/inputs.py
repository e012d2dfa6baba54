"""Settings and prompts that several scripts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from safesteer.config.settings import TrainSettings
from safesteer.models.chat import Message
from safesteer.prompts import PromptSet, load_prompt_set


def plain_training(*, lora: Mapping[str, Any] | None = None, **changes: Any) -> TrainSettings:
    """LoRA on harmful prompts alone: no anchors, prefills, short rollouts or checkpoints."""
    plain: dict[str, Any] = {
        "divergence": "generalized",
        "max_steps": None,
        "num_generations": 1,
        "anchor_share": 0.0,
        "anchor_weight": 1.0,
        "anchor_tokens": "safety",
        "prefill_share": 0.0,
        "learning_rate": 1e-5,
        "short_rollout_length": None,
        "lora": {"extrapolation": 0.0, **(lora or {})},
        "advanced": {"save_steps": 1000},
    }
    return TrainSettings.model_validate(plain | changes)


def harmful_prompts() -> list[list[Message]]:
    """The built-in harmful training prompts."""
    return [list(prompt.messages) for prompt in load_prompt_set("harmful").train]


def with_validation_prompts(sets: Mapping[str, PromptSet]) -> dict[str, PromptSet]:
    """The sets with validation prompts in place of test prompts, for choices between methods."""
    return {name: replace(found, test=found.validation) for name, found in sets.items()}


def of_benchmarks(limit: int | None, data_dir: str | None) -> list[str]:
    """Overrides of the settings for prompts per benchmark and the folder of their files."""
    overrides = [] if limit is None else [f"evaluate.limit={limit}"]
    return overrides + ([f"evaluate.data_dir={data_dir}"] if data_dir else [])
