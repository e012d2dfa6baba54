"""The hook that adds a vector to the residual stream while a model runs.

Knows nothing of where the vector comes from. The block's input is changed out of place, whatever
way the block gets it (first argument or keyword), so that no autograd graph is disturbed.
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

    The hook is gone afterwards, also when the body raises.
    """

    def hook(module: nn.Module, args: tuple, kwargs: dict):  # type: ignore[no-untyped-def]
        if args and isinstance(args[0], torch.Tensor):
            return (_on_main_stream(edit, args[0]), *args[1:]), kwargs
        if isinstance(kwargs.get("hidden_states"), torch.Tensor):
            edited = _on_main_stream(edit, kwargs["hidden_states"])
            return args, {**kwargs, "hidden_states": edited}
        raise SafeSteerError(
            f"{type(module).__name__} got no hidden states as first argument or by keyword;"
            " this architecture cannot be steered"
        )

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _on_main_stream(edit, hidden: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """``edit(hidden)``; of several streams [S, B, T, D], as Gemma 3n has them, the first is edited.

    It is the one that attention and feed-forward layers read; the others are predicted from it.
    """
    if hidden.dim() == 3:
        return edit(hidden)
    return torch.cat([edit(hidden[0])[None], hidden[1:]])


@contextmanager
def steer(
    model: nn.Module,
    layer: int,
    direction: torch.Tensor,  # [D] or [B, D] for one vector per sequence of the batch
    coefficient: float = 1.0,
) -> Iterator[None]:
    """h_layer <- h_layer + coefficient * direction at all positions (paper, section 3.1).

    Raises IndexError for a layer that the model does not have.
    """
    blocks = find_blocks(model)
    if not 0 <= layer < len(blocks):
        raise IndexError(f"layer {layer} is outside 0..{len(blocks) - 1}")
    vector = coefficient * direction.detach()
    if vector.dim() == 2:
        vector = vector[:, None, :]  # [B, 1, D]

    def add(hidden: torch.Tensor) -> torch.Tensor:
        return hidden + vector.to(device=hidden.device, dtype=hidden.dtype)

    with edit_block_input(blocks[layer], add):
        yield


@contextmanager
def ablate(model: nn.Module, direction: torch.Tensor) -> Iterator[None]:
    """Project the direction, [D] or [B, D], out of every block's input; for scoring only.

    h <- h - (h . r) r with r the unit direction (Arditi et al. 2024, equation 4). The last block's
    output is projected too, so that the direction is absent from the whole residual stream.
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
