"""Passes that start at a block, from the inputs that an earlier pass gave it.

An edit at block l leaves everything below l unchanged. Two passes over the same tokens that differ
only from l on (with and without a candidate direction; a steered teacher and a student without
trainable weights below) need the blocks under l once:

    with record_inputs(model, [l]) as inputs:
        one = hidden_states(model, ids, mask)
    with start_at_layer(model, l, inputs[l]), steer(model, l, vector):
        other = hidden_states(model, ids, mask)

The second pass may be under autograd: gradients reach block l and those above. Whether a model
allows this is found by trying (`startable_layers`): some blocks use keys and values of lower ones,
or return more than hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from safesteer.models.layers import find_blocks


@contextmanager
def record_inputs(
    model: nn.Module, layers: Collection[int]
) -> Iterator[dict[int, list[torch.Tensor]]]:
    """Record the inputs of the blocks `layers` while the context is open.

    Yields:
        {layer: [B, T, D] of every pass}, the output of the block below, detached, before any hook
        on the block's own input; nothing for layer 0, or above a block with another output.
    """
    blocks = find_blocks(model)
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}

    def collector(layer: int):  # type: ignore[no-untyped-def]
        def collect(module: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.dim() == 3:
                found[layer].append(output.detach())

        return collect

    with ExitStack() as hooks:
        for layer in found:
            if layer > 0:
                handle = blocks[layer - 1].register_forward_hook(collector(layer))
                hooks.callback(handle.remove)
        yield found


@contextmanager
def start_at_layer(model: nn.Module, layer: int, inputs: Iterable[torch.Tensor]) -> Iterator[None]:
    """Let each pass of the model start at block `layer` while the context is open.

    The model's own forward makes embeddings, masks and positions as usual, but the blocks below
    return at once. Hooks on the input of block `layer` see the recorded input: `inputs` are those
    of `record_inputs`, from passes over the same tokens in the same order.

    Raises:
        ValueError: a pass has another shape than its recorded input, or there is none for it.
    """
    given = iter(inputs)

    def skipping(index: int):  # type: ignore[no-untyped-def]
        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, Cache)), None)
            if cache is not None:
                # Masks and positions are made from the number of keys in the cache, so a skipped
                # block leaves as many as usual: of one element each, never read.
                stand_in = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
                cache.update(stand_in, stand_in, index)
            if index < layer - 1:
                return hidden
            recorded = next(given, None)
            if recorded is None or recorded.shape[:2] != hidden.shape[:2]:
                shape = None if recorded is None else tuple(recorded.shape[:2])
                raise ValueError(
                    f"a pass of {tuple(hidden.shape[:2])} tokens cannot start at block {layer} with"
                    f" a recorded input of {shape} tokens"
                )
            return recorded

        return forward

    skipped = list(find_blocks(model))[:layer]
    # accelerate, for one, replaces a block's forward; its own is put back.
    own = [vars(block).get("forward") for block in skipped]
    try:
        for index, block in enumerate(skipped):
            vars(block)["forward"] = skipping(index)
        yield
    finally:
        for block, forward in zip(skipped, own, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                vars(block)["forward"] = forward


@torch.no_grad()
def startable_layers(
    model: nn.Module, layers: Collection[int], run: Callable[[], torch.Tensor]
) -> set[int]:
    """Those of `layers` at which a pass can start with the same result as one of the whole model.

    `run` makes passes over a few tokens, like those to be made later, and returns their output; it
    is called once, and once for every layer.
    """
    with record_inputs(model, layers) as inputs:
        whole = run()
    bound = 1e-3 * whole.abs().max().item()

    def same(layer: int) -> bool:
        try:
            with start_at_layer(model, layer, inputs[layer]):
                return torch.allclose(run(), whole, rtol=0, atol=bound)
        except Exception:  # a model that needs more from a skipped block fails in its own way
            return False

    return {layer for layer in layers if layer == 0 or same(layer)}
