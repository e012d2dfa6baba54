"""Run a model from one of its blocks on, given what entered that block in an earlier pass.

What a pass changes at block l leaves everything below l as it was. Two passes over the same tokens
that differ only from l on (a candidate added there and none; a teacher steered there and a student
without trainable weights below) need the blocks under l once:

    with entering(model, [l]) as entered:
        one = hidden_states(model, ids, mask)
    with from_layer(model, l, entered[l]), steer(model, l, vector):
        other = hidden_states(model, ids, mask)

The second pass may be under autograd: gradients reach block l and what is above it. Whether a model
allows this is found by trying (`first_layers`), not by its name: some blocks use keys and values of
lower ones, or return more than hidden states.
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
def entering(model: nn.Module, layers: Collection[int]) -> Iterator[dict[int, list[torch.Tensor]]]:
    """Collect what enters the blocks `layers`: {layer: a tensor [B, T, D] for every pass}.

    It is what the block below returned, detached, before any hook on the block's own input. Layer 0
    needs nothing and gets nothing; so does a layer above a block that returns something else.
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
def from_layer(model: nn.Module, layer: int, entered: Iterable[torch.Tensor]) -> Iterator[None]:
    """While inside, a pass of the model begins at block `layer`, with the next one of `entered`.

    The passes must be those in which `entered` was collected: the same tokens, in the same order.
    The model's own forward runs, so embeddings, masks and positions are made as always; the blocks
    below return at once. Hooks on the input of block `layer` see what entered it.

    Raises ValueError for a pass of another shape than what is given to it, or one too many.
    """
    given = iter(entered)

    def skipping(index: int):  # type: ignore[no-untyped-def]
        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, Cache)), None)
            if cache is not None:
                # Masks and positions are made from the number of keys in the cache, so a skipped
                # block leaves as many as it would have: of one element each, never looked at.
                stand_in = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
                cache.update(stand_in, stand_in, index)
            if index < layer - 1:
                return hidden
            enters = next(given, None)
            if enters is None or enters.shape[:2] != hidden.shape[:2]:
                shape = None if enters is None else tuple(enters.shape[:2])
                raise ValueError(
                    f"a pass of {tuple(hidden.shape[:2])} tokens is to begin at block {layer}, but"
                    f" what was collected for it is of {shape}"
                )
            return enters

        return forward

    skipped = list(find_blocks(model))[:layer]
    # Something else may have put its own forward on a block (accelerate does): it comes back.
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
def first_layers(
    model: nn.Module, layers: Collection[int], run: Callable[[], torch.Tensor]
) -> set[int]:
    """Those of `layers` at which `run` can begin: it then gives what the whole model gives.

    Args:
        model: the model that `run` uses.
        layers: the layers to try, 0 among them or not.
        run: any number of passes over a few tokens, of the kind that are going to be made; it
            returns what came out. It is called once, and once more for every layer.
    """
    with entering(model, layers) as entered:
        whole = run()
    bound = 1e-3 * whole.abs().max().item()

    def same(layer: int) -> bool:
        try:
            with from_layer(model, layer, entered[layer]):
                return torch.allclose(run(), whole, rtol=0, atol=bound)
        except Exception:  # a model that misses what a skipped block leaves fails in its own way
            return False

    return {layer for layer in layers if layer == 0 or same(layer)}
