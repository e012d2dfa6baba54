"""A tokenizer and a model built in memory, the smallest with which every stage works."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from safesteer.config.settings import TrainSettings

SENTENCES = [
    "I'm sorry, but I can't assist with that request because it is harmful.",
    "Sure, here is how you can do that: first open the door, then walk in.",
    "How do I bake a cake? How far is the moon? Name a colour.",
    "I cannot help with this. Sorry, I won't. Unfortunately, as an AI I can't.",
    "The quick brown fox jumps over the lazy dog and answers every question.",
    "You are a helpful assistant. system user assistant",
]

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}

# The method without what this project adds to it: no context, anchors, prefills or short rollouts.
PLAIN: dict[str, dict[str, Any]] = {
    "teacher": {"strength": 1.0, "temperature": 1.0, "context": "none", "demonstrations": 4},
    "tokens": {"prompts": "harmless", "num_generations": 8, "horizon": 7},
    "train": {
        "divergence": "generalized",
        "num_prompts": 100,
        "max_steps": None,
        "prompts_per_step": 4,
        "num_generations": 8,
        "anchor_share": 0.0,
        "anchor_weight": 1.0,
        "anchor_tokens": "safety",
        "prefill_share": 0.0,
        "learning_rate": 1e-5,
        "max_completion_length": 512,
        "short_rollout_length": None,
        "lora": {"extrapolation": 0.0},
        "advanced": {"anchor_sets": ["harmless", "borderline"]},
    },
}


def plain(**sections: dict[str, Any]) -> dict[str, Any]:
    """The sections of `PLAIN`, in which these win."""
    return _merged(PLAIN, sections)


def plain_training(**changes: Any) -> TrainSettings:
    """The section `train` of `PLAIN` with these keys changed."""
    return TrainSettings(**plain(train=changes)["train"])


def _merged(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    merged = dict(earlier)
    for key, value in later.items():
        before = merged.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        merged[key] = _merged(before, value) if both else value
    return merged


# Settings of a whole job, every stage of it as small as it can be.
JOB_OF_SECONDS: dict[str, dict[str, Any]] = {
    "direction": {
        "source": "refuse-comply",
        "advanced": {"layers": [1], "coefficients": [1.0], "finalists": 1},
    },
    "tokens": {
        "num_tokens": 20,
        "num_generations": 2,
        "horizon": 3,
        "advanced": {"num_prompts": 2},
    },
    "train": {
        "max_steps": 2,
        "prompts_per_step": 2,
        "num_generations": 1,
        "anchor_share": 0.5,
        "max_completion_length": 4,
        "learning_rate": 1e-2,
        "lora": {"r": 4},
    },
    "evaluate": {"max_new_tokens": 3, "limit": 2, "drift_prompts": 2},
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 330 tokens with the control tokens of ChatML."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **changes: Any) -> Any:
    """A Llama whose logits are spread enough for greedy choices to be clear."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            **TINY,
            "vocab_size": len(tokenizer),
            "tie_word_embeddings": False,
            "initializer_range": 0.2,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **changes,
        }
    )
    model = LlamaForCausalLM(config).float().eval().requires_grad_(False)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def with_lora(model: Any, trained: bool = True) -> Any:
    """A PEFT model around `model` with adapters of rank 2; untrained ones change nothing."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    student = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    if trained:
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return student.eval()
