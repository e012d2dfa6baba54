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
    "max_position_embeddings": 512,
}

# Settings of a whole job, every stage of it as small as it can be.
JOB_OF_SECONDS: dict[str, dict[str, Any]] = {
    "direction": {
        "source": "refuse-comply",
        "layers": [1],
        "coefficients": [1.0],
        "finalists": 1,
    },
    "tokens": {"count": 20, "samples_per_prompt": 2, "horizon": 3, "prompt_count": 2},
    "train": {
        "updates": 2,
        "prompts_per_update": 2,
        "samples_per_prompt": 1,
        "anchor_share": 0.5,
        "max_completion_tokens": 4,
        "learning_rate": 1e-2,
        "lora": {"rank": 4},
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
