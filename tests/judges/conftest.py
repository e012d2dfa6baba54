"""Tiny guard models with random weights, or with weights that say one fixed text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

# A guard's template over plain messages, and one over content parts, as multimodal models have it.
PLAIN_TEMPLATE = (
    "Task: is the last message 'safe' or 'unsafe'?\n"
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'].strip() + '\n' }}"
    "{% endfor %}<|im_start|>"
)
PARTS_TEMPLATE = (
    "Task: is the last message 'safe' or 'unsafe'?\n"
    "{% for message in messages %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ message['role'] + ': ' + part['text'] | trim + '\n' }}{% endfor %}{% endfor %}"
    "<|im_start|>"
)

SIZES = {
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}


def make_guard(kind: str, tokenizer: Any, **changes: Any) -> Any:
    """A random model of one block; its width has room for one direction per token."""
    torch.manual_seed(0)
    sizes = {
        **SIZES,
        "vocab_size": len(tokenizer),
        "hidden_size": 384,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **changes,
    }
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**sizes))
    elif kind == "gemma":
        model = GemmaForCausalLM(GemmaConfig(**sizes))
    else:
        small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
        ends = {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
        text = {**sizes, "intermediate_size_mlp": 32, "num_local_experts": 2, "moe_layers": []}
        config = Llama4Config(
            # As in the published configuration of Llama Guard 4.
            text_config={**text, "attention_chunk_size": None},
            vision_config={**small, **ends, "num_hidden_layers": 1, "image_size": 28},
        )
        model = Llama4ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model.float().eval()


@torch.no_grad()
def make_it_say(model: Any, tokenizer: Any, last: str, text: str) -> None:
    """Change the weights so that `text` follows a prompt whose last token is `last`.

    The blocks add nothing, so the state is the last token's own direction, and the output matrix
    leads from each token of the text to the next.
    """
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embedding.copy_(torch.eye(*embedding.shape))
    head.zero_()
    chain = [tokenizer.convert_tokens_to_ids(last), *tokenizer(text)["input_ids"]]
    chain.append(tokenizer.eos_token_id)
    assert len(set(chain)) == len(chain), "each token may lead to one other only"
    for here, following in pairwise(chain):
        head[following, here] = 10.0


@pytest.fixture
def new_guard(tokenizer: Any) -> Callable[..., Any]:
    """Makes a tiny guard in memory: llama, mistral, gemma or llama4."""
    return lambda kind, **changes: make_guard(kind, tokenizer, **changes)


@pytest.fixture
def guard_folder(tmp_path: Path, tokenizer: Any) -> Callable[..., Path]:
    """Saves a tiny guard; with `says` the text that follows the token `last` of its prompt."""

    def save(
        kind: str,
        says: str | None = None,
        last: str = "<|im_start|>",
        parts: bool = False,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / f"guard-{kind}-{len(list(tmp_path.iterdir()))}"
        model = make_guard(kind, tokenizer, **changes)
        if says is not None:
            make_it_say(model, tokenizer, last, says)
        model.save_pretrained(folder)
        original = tokenizer.chat_template
        try:
            tokenizer.chat_template = PARTS_TEMPLATE if parts else PLAIN_TEMPLATE
            tokenizer.save_pretrained(folder)
        finally:
            tokenizer.chat_template = original
        return folder

    return save
