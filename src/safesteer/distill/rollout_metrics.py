"""The answers within rollouts: the mask of their tokens, and the share of them that refuse.

A model that thinks first writes thoughts and then an answer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from safesteer.judges.refusal_patterns import judge_refusal
from safesteer.models.chat import ChatRenderer

# completion_ids, completion_mask [B, C], strength, prefilled [B]
Batch = Mapping[str, torch.Tensor]

# {sign of the strength: the rate in which its answers count}
_RATES = {1: "refusal_rate", 0: "anchor_refusal_rate", -1: "repaired_refusal_rate"}


def answer_mask(chat: ChatRenderer, batch: Batch, length: int | None) -> torch.Tensor:
    """The tokens that the loss is computed on, bool [B, C]: those of answers, not of thoughts.

    After thoughts only `length` tokens of each answer count; None keeps all.
    """
    mask = batch["completion_mask"].bool()
    if not chat.thinks:
        return mask
    mask = mask.clone()
    for ids, row in zip(batch["completion_ids"], mask, strict=True):
        written = int(row.sum())
        start = chat.answer_start(ids[:written].tolist())
        start = written if start is None else start
        row[:start] = False
        if length is not None:
            row[start + length :] = False
    return mask


def answer_rates(chat: ChatRenderer, batch: Batch) -> dict[str, float]:
    """Measure rollouts: their mean length, and how many answers refuse.

    Returns:
        completion_length in tokens, refusal_rate of harmful prompts, anchor_refusal_rate,
        repaired_refusal_rate of prompts that the base wrongly refuses, and for a model that thinks
        first unfinished, the share of rollouts without an answer. Prefilled answers count in no
        refusal rate, since the judge reads whole answers, and a rate without any answer is missing.
    """
    verdicts: dict[str, list[float]] = {name: [] for name in _RATES.values()}
    unfinished = []
    for ids, mask, sign, prefilled in zip(
        batch["completion_ids"],
        batch["completion_mask"].bool(),
        batch["strength"].sign().int().tolist(),
        batch["prefilled"].tolist(),
        strict=True,
    ):
        response = chat.response(ids[mask].tolist())
        unfinished.append(not response.finished)
        if response.finished and not prefilled:
            verdicts[_RATES[sign]].append(judge_refusal(response.answer).refused)
    rates = {"completion_length": batch["completion_mask"].sum(-1).float().mean().item()}
    if chat.thinks:
        rates["unfinished"] = sum(unfinished) / len(unfinished)
    return rates | {name: sum(found) / len(found) for name, found in verdicts.items() if found}
