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


def rows_that_fit(model: Any, tokens: int) -> int:
    """How many sequences of `tokens`, prompt and answer together, to generate at once."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return max(1, min(CPU_ROWS, CPU_TOKENS // max(1, tokens)))
    total = torch.cuda.get_device_properties(device).total_memory
    weights = sum(parameter.nbytes for parameter in model.parameters())
    room = CUDA_SHARE * (total - weights)
    return max(1, min(CUDA_ROWS, int(room / (max(1, tokens) * bytes_per_token(model)))))


def bytes_per_token(model: Any) -> int:
    """Memory of one token while generating: its keys and values, and the states on their way."""
    config = text_config(model)
    size = model.dtype.itemsize
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", 0) or heads)
    # About a dozen vectors of the model's width live at once in a block.
    return size * (keys * width + 12 * config.hidden_size)
