"""Forward passes of a 16-bit model in float32, one block at a time.

In bfloat16 rounding alone changes the likeliest token now and then, which hides how far a trained
model has moved from its base (research/log/2026-11-27-rounding.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from safesteer.models.layers import find_blocks, is_sharded
from safesteer.models.quantization import is_quantized, quantization_of

_HALF = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[torch.dtype]:
    """Let the model compute in float32 while the context is open, with the same weights.

    A block's weights are converted when a pass enters it and put back when it leaves, so that
    memory holds one more block. 4-bit weights compute in float32 too; the output matrix is not
    converted, see `OutputHead`.

    Yields:
        The type that the model computes in: float32, or its own if it stays unchanged because its
        weights are offloaded, sharded, or 8-bit, whose products are integers.
    """
    if is_sharded(model) or any(parameter.is_meta for parameter in model.parameters()):
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
            if isinstance(module, nn.Embedding):  # the rows read are converted, not the matrix
                hook = module.register_forward_hook(_widen)
                stack.callback(hook.remove)
            else:
                found = module.parameters(recurse=module in inside)
                # 4-bit codes may be stored in a 16-bit type.
                weights = [w for w in found if w.dtype in _HALF and not is_quantized(w)]
                if weights:
                    stack.enter_context(_widened(module, weights))
        if quantization_of(model) == "4bit":
            for module in model.modules():
                if hasattr(module, "compute_dtype"):
                    stack.callback(setattr, module, "compute_dtype", module.compute_dtype)
                    module.compute_dtype = torch.float32  # type: ignore[assignment]
        yield torch.float32


def _widen(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output.float() if output.dtype in _HALF else output


@contextmanager
def _widened(module: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """Hold `weights` in float32 while `module` runs."""
    kept: list[tuple[nn.Parameter, torch.Tensor]] = []

    def enter(*_: object) -> None:
        for weight in weights:
            if weight.dtype in _HALF:
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
        leave()  # a pass that failed has not put them back
