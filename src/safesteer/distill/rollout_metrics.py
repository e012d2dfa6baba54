"""The answers within rollouts: the mask of their tokens, and the share of them that refuse.

A model that thinks first writes thoughts and then an answer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from safesteer.judges.refusal_patterns import judge_refusal
from safesteer.models.chat import ChatRenderer

# completion_ids, completion_mask [B, C], anchor, prefilled [B]
Batch = Mapping[str, torch.Tensor]


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
        completion_length in tokens, refusal_rate of harmful prompts and anchor_refusal_rate, and
        for a model that thinks first unfinished, the share of rollouts without an answer. Prefilled
        answers count in no refusal rate, since the judge reads whole answers, and a rate without
        any answer is missing.
    """
    verdicts: dict[bool, list[float]] = {False: [], True: []}
    unfinished = []
    for ids, mask, anchor, prefilled in zip(
        batch["completion_ids"],
        batch["completion_mask"].bool(),
        batch["anchor"].tolist(),
        batch["prefilled"].tolist(),
        strict=True,
    ):
        response = chat.response(ids[mask].tolist())
        unfinished.append(not response.finished)
        if response.finished and not prefilled:
            verdicts[anchor].append(judge_refusal(response.answer).refused)
    rates = {"completion_length": batch["completion_mask"].sum(-1).float().mean().item()}
    if chat.thinks:
        rates["unfinished"] = sum(unfinished) / len(unfinished)
    for anchor, name in ((False, "refusal_rate"), (True, "anchor_refusal_rate")):
        if verdicts[anchor]:
            rates[name] = sum(verdicts[anchor]) / len(verdicts[anchor])
    return rates
