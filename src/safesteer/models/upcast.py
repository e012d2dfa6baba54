"""Passes of a 16-bit model that compute in float32, a block at a time.

In bfloat16 the smallest change of the weights rounds other activations differently, and on every
fortieth token or so the likeliest next one is another. Where two models are compared token by token
that hides how far one has moved (research/log/2026-11-27-rounding.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from safesteer.models.layers import find_blocks, is_sharded
from safesteer.models.quantization import is_quantized, quantization_of

_ROUNDED = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[torch.dtype]:
    """Let the blocks of `model` and what surrounds them compute in float32 meanwhile.

    The values of the weights are those of the model, also of weights in 4 bits. A block's are
    converted when it is entered and put back when it is left, so that no more than one block more
    has to be held. The output matrix is not touched: see `OutputHead`.

    Yields the type in which the model then computes: float32, or its own where it stays as it is,
    because its weights are elsewhere (offloaded, spread over processes) or in 8 bits, whose
    products are of whole numbers.
    """
    elsewhere = is_sharded(model) or any(parameter.is_meta for parameter in model.parameters())
    if elsewhere:
        yield model.dtype  # type: ignore[misc]
        return
    if quantization_of(model) == "8bit":  # whose inputs are float16 on CUDA, whatever the model's
        yield torch.float16 if model.device.type == "cuda" else model.dtype  # type: ignore[misc]
        return
    blocks = list(find_blocks(model))
    inside = {module for block in blocks for module in block.modules()}
    around = [module for module in model.modules() if module not in inside]
    head = model.get_output_embeddings()  # type: ignore[operator]
    with ExitStack() as stack:
        for module in (*blocks, *around):
            if module is head:
                continue
            if isinstance(module, nn.Embedding):  # its rows are taken as they are
                hook = module.register_forward_hook(_widen)
                stack.callback(hook.remove)
            else:
                found = module.parameters(recurse=module in inside)
                # Codes of 4 bits may be kept in numbers of 16.
                weights = [w for w in found if w.dtype in _ROUNDED and not is_quantized(w)]
                if weights:
                    stack.enter_context(_widened(module, weights))
        if quantization_of(model) == "4bit":
            for module in model.modules():
                if hasattr(module, "compute_dtype"):
                    stack.callback(setattr, module, "compute_dtype", module.compute_dtype)
                    module.compute_dtype = torch.float32  # type: ignore[assignment]
        yield torch.float32


def _widen(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output.float() if output.dtype in _ROUNDED else output


@contextmanager
def _widened(module: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """`weights` are float32 while `module` runs."""
    kept: list[tuple[nn.Parameter, torch.Tensor]] = []

    def enter(*_: object) -> None:
        for weight in weights:
            if weight.dtype in _ROUNDED:
                kept.append((weight, weight.data))
                weight.data = weight.data.float()

    def leave(*_: object) -> None:
        while kept:
            weight, data = kept.pop()
            weight.data = data

    before = module.register_forward_pre_hook(enter)
    after = module.register_forward_hook(leave)
    try:
        yield
    finally:
        before.remove()
        after.remove()
        leave()  # where the pass failed: the model goes on being used
