"""Detection of activations that are not finite, named with their type and the first such block.

float16 ends at 65,504, which activations of models that were trained in bfloat16 exceed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn

from safesteer.errors import SafeSteerError
from safesteer.models.layers import find_blocks, is_sharded, without_adapter

_ADVICE = {
    torch.float16: "--dtype bfloat16 (model.dtype), or float32",
    torch.bfloat16: "--dtype float32 (model.dtype)",
}
_OTHERWISE = "download the model again, or a lower train.learning_rate if it was trained here"


def check_finite(
    model: nn.Module,
    hidden: torch.Tensor,
    mask: torch.Tensor | None = None,
    again: Callable[[], Any] | None = None,
) -> None:
    """Check the hidden states that a pass of `model` returned.

    Args:
        model: the model that made them.
        hidden: [B, T, D].
        mask: attention mask [B, T]; padding may hold anything.
        again: repeats the pass, to find the first block with such an output.

    Raises:
        SafeSteerError: one of them is NaN or infinite.
    """
    if not _overflows(hidden, mask):
        return
    block = None if again is None or is_sharded(model) else _first_block(model, mask, again)
    where = "" if block is None else f" from layer {block} on"
    dtype = str(hidden.dtype).removeprefix("torch.")
    name = type(without_adapter(model)).__name__
    raise SafeSteerError(
        f"the activations of {name} are NaN or infinite in {dtype}{where}."
        f" Try: {_ADVICE.get(hidden.dtype, _OTHERWISE)}"
    )


def _overflows(hidden: torch.Tensor, mask: torch.Tensor | None) -> bool:
    # A sum is infinite or NaN where an element is, and takes no copy of a large tensor.
    bad = ~hidden.detach().sum(-1, dtype=torch.float32).isfinite()
    return bool((bad if mask is None else bad & mask.bool().to(bad.device)).any())


@torch.no_grad()
def _first_block(
    model: nn.Module, mask: torch.Tensor | None, again: Callable[[], Any]
) -> int | None:
    """The first block whose output is not finite; None if the repeated pass does not tell."""
    found: list[int] = []

    def watch(index: int):  # type: ignore[no-untyped-def]
        def look(module: nn.Module, args: tuple, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if _overflows(states, mask):
                found.append(index)

        return look

    with ExitStack() as hooks:
        for index, block in enumerate(find_blocks(model)):
            hooks.callback(block.register_forward_hook(watch(index)).remove)
        # It fails here as before, or since it starts at recorded inputs, which are used up.
        with suppress(Exception):
            again()
    return min(found, default=None)
