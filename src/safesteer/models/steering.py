"""Hooks that edit the residual stream: adding a vector, or projecting one out.

A block's input is edited out of place, whether it is an argument or a keyword, so that autograd
graphs stay intact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from safesteer.errors import SafeSteerError
from safesteer.models.layers import find_blocks


@contextmanager
def edit_block_input(block: nn.Module, edit) -> Iterator[None]:  # type: ignore[no-untyped-def]
    """Replace the hidden states [B, T, D] that `block` receives by ``edit(hidden)``.

    Raises:
        SafeSteerError: the block gets no hidden states.
    """

    def hook(module: nn.Module, args: tuple, kwargs: dict):  # type: ignore[no-untyped-def]
        if args and isinstance(args[0], torch.Tensor):
            return (_on_main_stream(edit, args[0]), *args[1:]), kwargs
        if isinstance(kwargs.get("hidden_states"), torch.Tensor):
            edited = _on_main_stream(edit, kwargs["hidden_states"])
            return args, {**kwargs, "hidden_states": edited}
        raise SafeSteerError(
            f"{type(module).__name__} got no hidden states as first argument or by keyword, so this"
            " architecture cannot be steered. Try: another model"
        )

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _on_main_stream(edit, hidden: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """``edit(hidden)``; of Gemma 3n's several streams [S, B, T, D] the first is edited.

    Attention and feed-forward layers read that one; the others are predicted from it.
    """
    if hidden.dim() == 3:
        return edit(hidden)
    return torch.cat([edit(hidden[0])[None], hidden[1:]])


@contextmanager
def steer(
    model: nn.Module, layer: int, direction: torch.Tensor, coefficient: float = 1.0
) -> Iterator[None]:
    """Add a vector to the input of a block at all positions while the context is open.

    h_layer <- h_layer + coefficient * direction

    The direction is [D], or [B, D] with a vector for each sequence of the batch.

    Raises:
        IndexError: the model has no such layer.

    Source: SafeSteer (arXiv 2606.02530), section 3.1.
    """
    blocks = find_blocks(model)
    if not 0 <= layer < len(blocks):
        raise IndexError(f"layer {layer} is outside 0..{len(blocks) - 1} of this model")
    vector = coefficient * direction.detach()
    if vector.dim() == 2:
        vector = vector[:, None, :]  # [B, 1, D]

    def add(hidden: torch.Tensor) -> torch.Tensor:
        return hidden + vector.to(device=hidden.device, dtype=hidden.dtype)

    with edit_block_input(blocks[layer], add):
        yield


@contextmanager
def ablate(model: nn.Module, direction: torch.Tensor) -> Iterator[None]:
    """Project a direction out of the whole residual stream while the context is open.

    h <- h - (h . r) r with r the unit direction, at every block's input and the last one's output.

    The direction is [D], or [B, D] with a vector for each sequence of the batch.

    Source: Arditi et al. 2024 (arXiv 2406.11717), equation 4.
    """
    blocks = find_blocks(model)
    unit = (direction / direction.norm(dim=-1, keepdim=True)).detach()

    def project(hidden: torch.Tensor) -> torch.Tensor:
        r = unit.to(device=hidden.device, dtype=hidden.dtype)
        if r.dim() == 1:
            return hidden - (hidden @ r)[..., None] * r
        return hidden - (hidden @ r[:, :, None]) * r[:, None, :]

    def after(module: nn.Module, args: tuple, output):  # type: ignore[no-untyped-def]
        if isinstance(output, torch.Tensor):
            return _on_main_stream(project, output)
        return (_on_main_stream(project, output[0]), *output[1:])

    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(edit_block_input(block, project))
        hooks.callback(blocks[-1].register_forward_hook(after).remove)
        yield
