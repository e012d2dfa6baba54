"""The answers within rollouts: where they lie, and how many of them refuse.

Of a model that thinks first, what it writes is thoughts and an answer. Knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from safesteer.judges.refusal_patterns import judge_refusal
from safesteer.models.chat import ChatRenderer

Batch = Mapping[str, torch.Tensor]  # completion_ids and completion_mask [B, C], anchor, begun [B]


def answer_mask(
    chat: ChatRenderer, batch: Batch, opening: int | None
) -> torch.Tensor:  # [B, C], bool
    """The positions that the loss looks at: those of the answers, not of the thoughts.

    Of answers behind thoughts it looks at the first `opening` tokens, if that is set.
    """
    mask = batch["completion_mask"].bool()
    if not chat.thinks:
        return mask
    mask = mask.clone()
    for ids, row in zip(batch["completion_ids"], mask, strict=True):
        length = int(row.sum())
        start = chat.answer_start(ids[:length].tolist())
        start = length if start is None else start
        row[:start] = False
        if opening is not None:
            row[start + opening :] = False
    return mask


def answer_rates(chat: ChatRenderer, batch: Batch) -> dict[str, float]:
    """Mean length of the rollouts, and shares of them that refuse, apart for anchors.

    For a model that thinks first also the share that came to no answer. Shares of nothing are left
    out, and answers that were begun for the model are not in them: the judge reads whole ones.
    """
    verdicts: dict[bool, list[float]] = {False: [], True: []}
    unfinished = []
    for ids, mask, anchor, begun in zip(
        batch["completion_ids"],
        batch["completion_mask"].bool(),
        batch["anchor"].tolist(),
        batch["begun"].tolist(),
        strict=True,
    ):
        said = chat.response(ids[mask].tolist())
        unfinished.append(not said.finished)
        if said.finished and not begun:
            verdicts[anchor].append(judge_refusal(said.answer).refused)
    rates = {"completion_length": batch["completion_mask"].sum(-1).float().mean().item()}
    if chat.thinks:
        rates["unfinished"] = sum(unfinished) / len(unfinished)
    for anchor, name in ((False, "refusal_rate"), (True, "anchor_refusal_rate")):
        if verdicts[anchor]:
            rates[name] = sum(verdicts[anchor]) / len(verdicts[anchor])
    return rates
