"""Hidden states of a batch of sequences, whose common prefix is run once.

A chat template puts the same system prompt before every request, and a teacher with a context reads
it every time; for short requests that is half of the tokens or more. The common prefix is run as a
batch of one, and its keys and values serve every row. The result is the same up to rounding,
including gradients and hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from safesteer.models.chat import pad_left
from safesteer.models.layers import backbone, is_sharded, text_config
from safesteer.models.overflow import check_finite

# Tokens that have to be saved to pay for one more pass of the model. For CPUs it was measured
# (research/log/2026-11-22-cpu-speed.md), for GPUs it is an estimate.
_WORTHWHILE = {"cpu": 256}
_WORTHWHILE_ELSEWHERE = 4096


def hidden_states(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, tail: int = 1
) -> torch.Tensor:
    """Hidden states [B, T, D] after the final norm, which the output matrix reads.

    Hooks may see two passes: the common prefix as a batch of one, then the rest of every row.

    Args:
        model: a causal language model, or a PEFT model around one.
        input_ids: [B, T], padded on the left, and perhaps on the right too.
        attention_mask: [B, T].
        tail: the last tokens of every row that are never part of the prefix.

    Raises:
        SafeSteerError: the states of a token are NaN or infinite.
    """

    def whole() -> torch.Tensor:
        return backbone(model)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions(attention_mask),
            use_cache=False,
        ).last_hidden_state.to(input_ids.device)  # a model may lie on several devices

    shared = share_prefix(model, input_ids, attention_mask, tail=tail)
    hidden = whole() if shared is None else _after_prefix(model, shared, input_ids.device)
    check_finite(model, hidden, attention_mask, whole)
    return hidden


def _after_prefix(model: nn.Module, shared: SharedPrefix, device: torch.device) -> torch.Tensor:
    rest = backbone(model)(
        input_ids=shared.ids[:, shared.length :],
        attention_mask=shared.mask,
        position_ids=positions(shared.mask)[:, shared.length :],
        past_key_values=shared.cache,
        use_cache=True,
    ).last_hidden_state
    return shared.in_place(rest.to(device))


def completion_states(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
    *,
    run_last: bool = False,
) -> list[torch.Tensor]:
    """Hidden states that predict the tokens of each completion, from one padded batch.

    `run_last` also runs the last token of each completion, which predicts none of its tokens, for
    hooks that have to see it.

    Returns:
        [T, D] for each completion of T tokens, after the final norm.
    """
    tails = completions if run_last else [completion[:-1] for completion in completions]
    full = [[*prompt, *tail] for prompt, tail in zip(prompts, tails, strict=True)]
    ids, mask = pad_left(full, pad_id, model.device)
    hidden = hidden_states(model, ids, mask)
    end = hidden.shape[1] - run_last
    return [
        states[end - len(completion) : end]
        for states, completion in zip(hidden, completions, strict=True)
    ]


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids [B, T] that skip padding, so that padding never changes a result."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


@dataclass
class SharedPrefix:
    """A batch whose common prefix has been run."""

    ids: torch.Tensor  # [B, T] in the order prefix, padding, rest
    mask: torch.Tensor  # [B, T] in the same order
    length: int  # P, the prefix's length
    start: torch.Tensor  # [B], the first column of each given row that is not padding
    hidden: torch.Tensor  # the prefix's hidden states [1 or B, P, D]
    cache: DynamicCache  # keys and values of the prefix, for every row

    def in_place(self, rest: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, D] of the given batch, from those of the rest [B, T - P, D]."""
        batch, width = self.ids.shape
        hidden = rest.new_zeros((batch, width, rest.shape[-1]))
        hidden[:, self.length :] = rest
        columns = self.start[:, None] + torch.arange(self.length, device=rest.device)  # [B, P]
        rows = torch.arange(batch, device=rest.device)[:, None]
        hidden[rows, columns] = self.hidden.to(rest).expand(batch, -1, -1)
        return hidden


def share_prefix(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, *, tail: int = 1, new_tokens: int = 0
) -> SharedPrefix | None:
    """Run the common prefix of a batch; None if it is too short, or `empty_cache` allows none.

    Args:
        model: a causal language model, or a PEFT model around one.
        ids: token ids [B, T], padded on the left.
        mask: attention mask [B, T].
        tail: the last tokens of every row that are never part of the prefix.
        new_tokens: tokens that will be generated after each row.
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
        # Hooks with a vector for each row have made a whole batch already; layers that share the
        # keys and values of others hold none.
        if isinstance(layer, DynamicLayer) and layer.keys is not None and len(layer.keys) == 1:
            layer.batch_repeat_interleave(batch)
    # The first P columns are dropped, so every row's end stays in place; what precedes it there
    # (padding, or the row's own prefix) is masked.
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
    """Length of the common prefix without any row's `tail`, and the first column of each row."""
    start = mask.argmax(dim=1)  # the first 1 of each row
    most = int(mask.sum(dim=1).min()) - tail
    if most < 1:
        return 0, start
    columns = start[:, None] + torch.arange(most, device=ids.device)
    prefixes = ids.gather(1, columns)
    same = (prefixes == prefixes[:1]).all(dim=0)
    return int(same.long().cumprod(0).sum()), start


def common_prefix(sequences: Sequence[Sequence[int]], tail: int = 0) -> int:
    """Length of the common prefix of token ids, without the last `tail` of any."""
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False))
    return min(sum(1 for _ in alike), min(map(len, sequences), default=0) - tail)


def is_worthwhile(saved: int, device: torch.device) -> bool:
    """Whether skipping `saved` tokens pays for one more pass."""
    return saved >= _WORTHWHILE.get(device.type, _WORTHWHILE_ELSEWHERE)


def empty_cache(model: Any, width: int) -> DynamicCache | None:
    """A cache for a common prefix of rows of `width` tokens; None if the model allows none.

    Its layers must keep plain keys and values, which state-space layers do not, without sliding
    windows or in windows wider than `width`; and its weights must not be sharded, since then all
    processes have to make the same passes whatever their prompts.
    """
    if is_sharded(model):
        return None
    inner = backbone(model)
    if inner.training and any(getattr(m, "gradient_checkpointing", False) for m in inner.modules()):
        return None  # transformers keeps no cache with gradient checkpointing
    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        return None
    cache = DynamicCache(config=text_config(model))
    for layer in cache.layers:
        if type(layer) is DynamicSlidingWindowLayer:
            # The padding between prefix and rest would move the window.
            if width >= layer.sliding_window:
                return None
        elif type(layer) is not DynamicLayer:
            return None
    return cache
