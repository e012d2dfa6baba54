"""Settings, prompts and small models that several scripts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from safesteer.config.settings import TrainSettings
from safesteer.direction.vector import Direction
from safesteer.models.chat import Message
from safesteer.models.files import builtin_path
from safesteer.models.load import ChatModel
from safesteer.models.quiet import quiet_libraries
from safesteer.prompts import PromptSet, load_prompt_set

# Our own benchmarks, as eval/MODEL.json names them.
OWN = ("harmful", "harmful+prefill", "harmless", "borderline")


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


def builtin_tokenizer() -> Any:
    """The tokenizer of the built-in model."""
    path = builtin_path()
    with quiet_libraries():
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def random_llama(
    size: tuple[int, int, int, int, int], vocabulary: int, **config: Any
) -> LlamaForCausalLM:
    """A Llama of random weights.

    Args:
        size: width, intermediate width, blocks, heads, key-value heads.
        vocabulary: rows of the embedding, which is the output matrix too.
        config: further arguments of LlamaConfig.
    """
    width, intermediate, layers, heads, keys = size
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=keys,
            vocab_size=vocabulary,
            tie_word_embeddings=True,
            **config,
        )
    )


def random_direction(model: ChatModel, size: float = 1.0) -> Direction:
    """A random direction at the middle layer, for what does not depend on its meaning."""
    width = model.model.get_input_embeddings().weight.shape[1]
    vector = size * torch.randn(width, generator=torch.Generator().manual_seed(0))
    return Direction(vector, model.layers // 2)
