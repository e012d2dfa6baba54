"""How far a trained model is from its base on harmless prompts, token by token.

The base answers harmless prompts; at every token of its answers both models' next-token
distributions are compared. No judge and no benchmark is involved: this is the most sensitive sign
that something other than safety has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from safesteer.evaluate.answers import generate
from safesteer.evaluate.batches import rows_that_fit
from safesteer.evaluate.statistics import mean_interval
from safesteer.models.batches import in_batches
from safesteer.models.chat import Message, pad_left
from safesteer.models.float32 import in_float32
from safesteer.models.forward import hidden_states
from safesteer.models.generate import Progress
from safesteer.models.head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.teacher import base_weights


def measure_drift(
    base: ChatModel,
    student: Any,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Next-token agreement and KL(base || student) on the base's answers to harmless prompts.

    `student` is a PEFT model around ``base.model``, or a separate model with all weights trained.
    Both read the answers in float32 (`models.float32`), so that what is measured is the change of
    the weights and not that of the rounding.
    Returns two entries of eval/aligned.json; intervals are over prompts, not tokens.
    """
    pairs = drift_by_prompt(
        base,
        student,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    agreement, divergence = [same for same, _ in pairs], [kl for _, kl in pairs]

    def entry(metric: str, values: list[float], *, share: bool = False) -> dict[str, Any]:
        return {
            "metric": metric,
            "value": sum(values) / len(values),
            "ci95": list(mean_interval(values, share=share)),
            "n": len(values),
            "judge": None,
            "kind": "capability",
        }

    return {
        "agreement": entry("next_token_agreement", agreement, share=True),
        "divergence": entry("kl_base_aligned", divergence),
    }


@torch.no_grad()
def drift_by_prompt(
    base: ChatModel,
    student: Any,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> list[tuple[float, float]]:
    """What `measure_drift` takes means of: agreement and KL, nats, over each prompt's answer."""
    rendered = [base.chat.ids(messages) for messages in prompts]
    with base_weights(base.model if student is None else student):
        answers = generate(
            base.model,
            base.tokenizer,
            rendered,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
    longest = max(len(p) + len(a) for p, a in zip(rendered, answers, strict=True))
    batch_size = batch_size or rows_that_fit(base.model, longest)
    base_head, head = OutputHead.of(base.model), OutputHead.of(student)

    def read(part: Sequence[int]) -> list[tuple[float, float]]:
        full = [rendered[row] + answers[row] for row in part]
        ids, mask = pad_left(full, base.tokenizer.pad_token_id, base.model.device)
        with ExitStack() as exact:
            for model in (base.model, student):
                exact.enter_context(in_float32(model))
            with base_weights(student):
                before = hidden_states(base.model, ids, mask)
            after = hidden_states(student, ids, mask)
        found = []
        for row, index in enumerate(part):
            where = slice(-len(answers[index]) - 1, -1)
            log_0 = base_head.every_log_prob(before[row, where])
            log_s = head.every_log_prob(after[row, where])
            same = log_0.argmax(-1) == log_s.argmax(-1)
            kl = (log_0.exp() * (log_0 - log_s)).sum(-1).mean()
            found.append((same.float().mean().item(), kl.item()))
        return found

    return [pair for part in in_batches(range(len(rendered)), batch_size, read) for pair in part]
