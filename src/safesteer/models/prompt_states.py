"""Prompts that are read once, without gradient, for passes that continue them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from safesteer.models.hidden_states import empty_cache, positions, share_prefix
from safesteer.models.layers import backbone


class PromptStates(NamedTuple):
    """A batch of prompts that were read up to their last tokens."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, [B, H, T, d]
    mask: torch.Tensor  # [B, T], 0 for padding
    last: torch.Tensor  # ids of the last tokens, which are not read yet, [B, L]

    def rows(self, which: slice) -> PromptStates:
        """Those of some of the prompts."""
        layers = [(keys[which], values[which]) for keys, values in self.layers]
        return PromptStates(layers, self.mask[which], self.last[which])


@torch.no_grad()
def read_prompts(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, *, last: int, new_tokens: int
) -> PromptStates | None:
    """Read prompts up to their last tokens; None if `empty_cache` allows no cache for them.

    Args:
        model: a causal language model, or a PEFT model around one.
        ids: token ids [B, T], padded on the left.
        mask: attention mask [B, T].
        last: how many tokens are left to read, at least 1; fewer if a prompt is as short.
        new_tokens: tokens that will follow each prompt.
    """
    last = max(1, min(last, int(mask.sum(-1).min()) - 1))
    unread, ids, mask = ids[:, -last:], ids[:, :-last], mask[:, :-last]
    shared = share_prefix(model, ids, mask, new_tokens=last + new_tokens)
    if shared is None:
        cache, start = empty_cache(model, ids.shape[1] + last + new_tokens), 0
        if cache is None:
            return None
    else:
        cache, start, ids, mask = shared.cache, shared.length, shared.ids, shared.mask
    backbone(model)(
        input_ids=ids[:, start:],
        attention_mask=mask,
        position_ids=positions(mask)[:, start:],
        past_key_values=cache,
        use_cache=True,
    )
    layers = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr]
    if any(keys is None for keys, _ in layers):  # blocks that use those of others
        return None
    return PromptStates(layers, mask, unread)  # type: ignore[arg-type]


def continue_prompts(
    model: Any, prompts: PromptStates, ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Hidden states [B, N, D] after the final norm that predict each token of completions.

    Gradients flow through the prompts' last tokens and the completions alone.

    Args:
        model: the model that read the prompts; its weights may have changed since.
        prompts: what it read.
        ids: the completions, [B, N], padded on the right.
        mask: their attention mask, [B, N].
    """
    read, last = prompts.mask.shape[1], prompts.last.shape[1]
    ids = torch.cat([prompts.last, ids[:, :-1]], dim=1)
    mask = torch.cat([prompts.mask, torch.ones_like(prompts.last), mask[:, :-1]], dim=1)
    cache = empty_cache(model, mask.shape[1])
    assert cache is not None
    for layer, (keys, values) in zip(cache.layers, prompts.layers, strict=True):
        layer.update(keys, values)  # type: ignore[union-attr]
    hidden = backbone(model)(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask)[:, read:],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return hidden[:, last - 1 :].to(ids.device)
