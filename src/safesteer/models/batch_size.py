"""How many answers a model can write at once, by the memory that they take.

Depends on the model, the machine and the prompts alone, never on what else is in memory, so that
the same evaluation is cut into the same batches again.
"""

from __future__ import annotations

from typing import Any

import torch

from safesteer.models.layers import text_config

# On the CPU more rows at once gain nothing beyond this, and padding is work too.
CPU_TOKENS = 8192
CPU_ROWS = 64
CUDA_ROWS = 256
# Of the memory that the weights leave; the rest is for a judge and for what libraries hold.
CUDA_SHARE = 0.5


def rows_that_fit(model: Any, tokens: int, size: int | None = None) -> int:
    """How many sequences of `tokens`, prompt and answer together, to generate at once.

    `size`: bytes of a number that the passes compute with; those of the model's own if None.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return rows_on_cpu(tokens)
    total = torch.cuda.get_device_properties(device).total_memory
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return rows_on_gpu(total, weights, tokens, bytes_per_token(model, size))


def rows_on_cpu(tokens: int) -> int:
    """How many sequences of `tokens` a CPU is given at once."""
    return max(1, min(CPU_ROWS, CPU_TOKENS // max(1, tokens)))


def rows_on_gpu(card: float, weights: float, tokens: int, token: int) -> int:
    """How many sequences of `tokens` a card is given at once.

    `card`, `weights`: bytes of its memory and of the model; `token`: see `token_bytes`.
    """
    room = CUDA_SHARE * (card - weights)
    return max(1, min(CUDA_ROWS, int(room / (max(1, tokens) * token))))


def token_bytes(size: int, layers: int, keys: int, width: int) -> int:
    """Memory of one token while generating: its keys and values, and the states on their way.

    `size`: bytes of a number; `keys`: width of a layer's keys, all heads together.
    """
    # About a dozen vectors of the model's width live at once in a block.
    return size * (2 * layers * keys + 12 * width)


def bytes_per_token(model: Any, size: int | None = None) -> int:
    """`token_bytes` of a model, in its own type or with numbers of `size` bytes."""
    config = text_config(model)
    size = size or model.dtype.itemsize
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = width * (getattr(config, "num_key_value_heads", 0) or heads)
    return token_bytes(size, config.num_hidden_layers, keys, config.hidden_size)
