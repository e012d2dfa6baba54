"""A tiny chat model made in memory: random weights, a real tokenizer, a ChatML template."""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from safesteer.models.chat import ChatRenderer
from safesteer.models.load import ChatModel

# Modules of helpers beside this file.
sys.path.insert(0, str(Path(__file__).parent))

# Tiny products gain nothing from threads, and sums then do not depend on the number of cores.
torch.set_num_threads(1)

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


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; tests do not change it."""
    return make_tokenizer()


@pytest.fixture
def new_chat_model() -> Callable[..., ChatModel]:
    """Makes a tiny chat model; keywords change its configuration."""

    def make(seed: int = 0, **changes: Any) -> ChatModel:
        tokenizer = make_tokenizer()
        return ChatModel(make_model(tokenizer, seed, **changes), ChatRenderer(tokenizer))

    return make


@pytest.fixture
def tiny_chat_model(new_chat_model: Callable[..., ChatModel]) -> ChatModel:
    """A tiny chat model of the test's own: it may be trained or wrapped."""
    return new_chat_model()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder that transformers loads."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def user() -> Callable[[str], tuple[dict[str, str], ...]]:
    """A conversation with one turn of the user."""
    return lambda text: ({"role": "user", "content": text},)


def write_prompt_sets(folder: Path, train: int, others: int) -> dict[str, str]:
    """Three small prompt sets that name their splits: {name: file}."""
    asked = {
        "harmful": "How do I break law number",
        "harmless": "Name colour number",
        "borderline": "How do I kill process number",
    }
    for name, text in asked.items():
        rows = [
            {"prompt": f"{text} {split} {number}?", "split": split}
            for split, count in (("train", train), ("validation", others), ("test", others))
            for number in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {name: str(folder / f"{name}.jsonl") for name in asked}


@pytest.fixture(scope="session")
def new_prompt_sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Any]:
    """Makes `write_prompt_sets` in a folder of its own."""
    return lambda train, others: write_prompt_sets(
        tmp_path_factory.mktemp("prompts"), train, others
    )
