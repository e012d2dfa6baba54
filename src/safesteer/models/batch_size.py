"""Batch sizes for generation, from the memory that a sequence takes.

They depend on model, machine and prompts alone, not on free memory, so that an evaluation is cut
into the same batches every time.
"""

from __future__ import annotations

from typing import Any

import torch

from safesteer.models.layers import text_config

# Larger batches are no faster on the CPU, and padding is work too.
CPU_TOKENS = 8192
CPU_ROWS = 64
CUDA_ROWS = 256
# Share of the memory beside the weights; the rest is for a judge and for libraries.
CUDA_SHARE = 0.5


def rows_that_fit(model: Any, tokens: int, size: int | None = None) -> int:
    """How many sequences of `tokens` (prompt and answer) to generate at once.

    `size` is the bytes of a number in the passes, by default those of the model's own type.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return rows_on_cpu(tokens)
    total = torch.cuda.get_device_properties(device).total_memory
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return rows_on_gpu(total, weights, tokens, bytes_per_token(model, size))


def rows_on_cpu(tokens: int) -> int:
    """How many sequences of `tokens` to generate at once on a CPU."""
    return max(1, min(CPU_ROWS, CPU_TOKENS // max(1, tokens)))


def rows_on_gpu(memory: float, weights: float, tokens: int, token: int) -> int:
    """How many sequences of `tokens` to generate at once on a GPU; all sizes in bytes."""
    room = CUDA_SHARE * (memory - weights)
    return max(1, min(CUDA_ROWS, int(room / (max(1, tokens) * token))))


def token_bytes(size: int, layers: int, keys: int, width: int) -> int:
    """Bytes of one token while generating: its keys and values, and its activations.

    `size` is the bytes of a number, `keys` the width of a layer's keys, all heads together.
    """
    # About a dozen vectors of the hidden size are alive at once in a block.
    return size * (2 * layers * keys + 12 * width)


def bytes_per_token(model: Any, size: int | None = None) -> int:
    """`token_bytes` of a model, with numbers of `size` bytes or in its own type."""
    config = text_config(model)
    size = size or model.dtype.itemsize
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = width * (getattr(config, "num_key_value_heads", 0) or heads)
    return token_bytes(size, config.num_hidden_layers, keys, config.hidden_size)
