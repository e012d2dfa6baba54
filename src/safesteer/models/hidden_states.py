"""Hidden states of a batch of prompts; what all of them begin with is run once.

A chat template puts the same system prompt before every request, and a teacher that reads
something first reads the same text each time; for short requests that is half of the tokens or
more. The common beginning goes through the model as a batch of one, and its keys and values serve
every row. The result is the same, gradients and hooks included, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from safesteer.models.chat import pad_left
from safesteer.models.layers import backbone, is_sharded, text_config

# One more pass of the model has to be made up for by the tokens that are saved. The bound on CPUs
# was measured on 2 cores (research/log/2026-11-22-cpu-speed.md); for GPUs, where a small pass is
# all waiting, it is an estimate.
_WORTHWHILE = {"cpu": 256}
_WORTHWHILE_ELSEWHERE = 4096


def hidden_states(
    model: nn.Module,
    input_ids: torch.Tensor,  # [B, T], padded on the left
    attention_mask: torch.Tensor,  # [B, T]
    *,
    tail: int = 1,
) -> torch.Tensor:  # [B, T, D], after the final norm
    """The last hidden states, the input of the output matrix; positions follow the mask.

    Hooks on the model may see two passes, the common beginning of all rows (as a batch of one) and
    then what follows it: at least the last `tail` tokens of every row.
    """
    shared = share_prefix(model, input_ids, attention_mask, tail=tail)
    if shared is None:
        return backbone(model)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions(attention_mask),
            use_cache=False,
        ).last_hidden_state.to(input_ids.device)  # a model may lie on several devices
    rest = backbone(model)(
        input_ids=shared.ids[:, shared.length :],
        attention_mask=shared.mask,
        position_ids=positions(shared.mask)[:, shared.length :],
        past_key_values=shared.cache,
        use_cache=True,
    ).last_hidden_state
    return shared.in_place(rest.to(input_ids.device))


def completion_states(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
    *,
    run_last: bool = False,
) -> list[torch.Tensor]:
    """Hidden states that predict the tokens of each completion, from one padded batch.

    Args:
        model: a causal language model, or a PEFT model around one.
        prompts: token ids of each prompt.
        completions: token ids after each prompt.
        pad_id: fills the batch on the left.
        run_last: also run each completion's last token, which predicts nothing here but which
            hooks may have to see.

    Returns:
        [T, D] for each completion of T tokens, after the final norm.
    """
    tails = completions if run_last else [completion[:-1] for completion in completions]
    full = [[*prompt, *tail] for prompt, tail in zip(prompts, tails, strict=True)]
    ids, mask = pad_left(full, pad_id, model.device)
    hidden = hidden_states(model, ids, mask)
    end = hidden.shape[1] - run_last  # the last state of a completion that was run predicts more
    return [
        states[end - len(completion) : end]
        for states, completion in zip(hidden, completions, strict=True)
    ]


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids [B, T] that do not count padding, so that padding never changes a result."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


@dataclass
class SharedPrefix:
    """A batch whose common beginning has been through the model.

    Attributes:
        ids: token ids [B, T], as wide as the batch was: the beginning, padding, then the rest.
        mask: attention mask [B, T] in the same order.
        length: P, the number of columns that are in the cache.
        start: [B], the first column of each row that is not padding in the batch as it was given.
        hidden: the beginning's hidden states [1 or B, P, D].
        cache: keys and values of the beginning, for every row.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    length: int
    start: torch.Tensor
    hidden: torch.Tensor
    cache: DynamicCache

    def in_place(self, rest: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, D] of the batch as it was given, from those of the rest."""
        batch, width = self.ids.shape
        hidden = rest.new_zeros((batch, width, rest.shape[-1]))
        hidden[:, self.length :] = rest
        columns = self.start[:, None] + torch.arange(self.length, device=rest.device)  # [B, P]
        rows = torch.arange(batch, device=rest.device)[:, None]
        hidden[rows, columns] = self.hidden.to(rest).expand(batch, -1, -1)
        return hidden


def share_prefix(
    model: Any,
    ids: torch.Tensor,  # [B, T], padded on the left
    mask: torch.Tensor,  # [B, T]
    *,
    tail: int = 1,
    new_tokens: int = 0,
) -> SharedPrefix | None:
    """Run the common beginning of a batch; None where there is too little of it, or no way to.

    The model's layers must keep plain keys and values: state-space layers make this None, and so
    do windows narrower than the batch with the `new_tokens` that are going to be added to it, and
    weights spread over processes, which have to make the same passes whatever their prompts.
    """
    length, start = _common(ids, mask, tail)
    batch, width = ids.shape
    if not is_worthwhile(length * (batch - 1), ids.device):
        return None
    cache = empty_cache(model, width + new_tokens)
    if cache is None:
        return None
    begin = ids[:1, start[0] : start[0] + length]
    seen = torch.ones_like(begin)
    hidden = backbone(model)(
        input_ids=begin,
        attention_mask=seen,
        position_ids=positions(seen),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    for layer in cache.layers:
        # A vector for each row makes a batch of one into a whole batch; some layers borrow the
        # keys and values of others and hold none.
        if isinstance(layer, DynamicLayer) and layer.keys is not None and len(layer.keys) == 1:
            layer.batch_repeat_interleave(batch)
    # Dropping the first P columns leaves the end of every row where it was; what stood before it
    # there (padding, or the row's own beginning) is masked.
    columns = torch.arange(width - length, device=ids.device)
    rest = mask[:, length:] * (columns >= start[:, None])
    return SharedPrefix(
        ids=torch.cat([begin.expand(batch, -1), ids[:, length:]], dim=1),
        mask=torch.cat([seen.expand(batch, -1), rest.to(seen.dtype)], dim=1),
        length=length,
        start=start,
        hidden=hidden,
        cache=cache,
    )


def _common(ids: torch.Tensor, mask: torch.Tensor, tail: int) -> tuple[int, torch.Tensor]:
    """How many tokens all rows begin with, `tail` of each left over, and where rows begin."""
    start = mask.argmax(dim=1)  # the first 1 of each row
    most = int(mask.sum(dim=1).min()) - tail
    if most < 1:
        return 0, start
    columns = start[:, None] + torch.arange(most, device=ids.device)
    beginnings = ids.gather(1, columns)
    same = (beginnings == beginnings[:1]).all(dim=0)
    return int(same.long().cumprod(0).sum()), start


def is_worthwhile(saved: int, device: torch.device) -> bool:
    """Whether so many tokens that need not be run make up for one more pass."""
    return saved >= _WORTHWHILE.get(device.type, _WORTHWHILE_ELSEWHERE)


def empty_cache(model: Any, width: int) -> DynamicCache | None:
    """A cache for a common beginning; None where rows of `width` tokens cannot go on from one.

    The model's layers must keep plain keys and values, in windows wider than that if in any, and
    its weights must not be spread over processes.
    """
    if is_sharded(model):
        return None
    inner = backbone(model)
    if inner.training and any(getattr(m, "gradient_checkpointing", False) for m in inner.modules()):
        return None  # transformers keeps no cache then
    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        return None
    cache = DynamicCache(config=text_config(model))
    for layer in cache.layers:
        if type(layer) is DynamicSlidingWindowLayer:
            # Padding stands between the beginning and the rest, so a window would move.
            if width >= layer.sliding_window:
                return None
        elif type(layer) is not DynamicLayer:
            return None
    return cache
