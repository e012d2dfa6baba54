"""Behavior of a steered model: how often it refuses, and whether its text stays fluent.

Directions are chosen by behavior: the steered model answers validation prompts, a judge reads the
answers, and the unsteered model gives their likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from safesteer.direction.vector import Direction
from safesteer.judges.looping import is_looping
from safesteer.judges.refusal_patterns import judge_refusal
from safesteer.models.base_weights import base_weights
from safesteer.models.chat import Message
from safesteer.models.generate import Decoding, generate
from safesteer.models.hidden_states import completion_states
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.oom import row_by_row

OBSERVED_TOKENS = 24  # of each answer


@dataclass(frozen=True)
class Behavior:
    """Behavior of a model on a set of prompts."""

    refusals: float  # share of answers that refuse
    loops: float  # share of answers that end in a loop
    nll: float  # mean negative log-likelihood of a token under the unsteered model, in nats


def observe(
    model: ChatModel,
    direction: Direction | None,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = OBSERVED_TOKENS,
    batch_size: int = 64,
) -> Behavior:
    """Judge the model's greedy answers, steered unless `direction` is None, with adapters off."""
    rendered = [model.chat.ids(messages) for messages in prompts]
    steered = nullcontext() if direction is None else direction.steer(model.model)
    with base_weights(model.model), steered:
        answers = generate(
            model.model, model.tokenizer, rendered, Decoding(max_new_tokens), batch_size=batch_size
        )
    texts = [model.chat.decode(answer) for answer in answers]
    refused = [
        judge_refusal(text, str(messages[-1]["content"])).refused
        for text, messages in zip(texts, prompts, strict=True)
    ]
    return Behavior(
        refusals=sum(refused) / len(refused),
        loops=sum(map(is_looping, texts)) / len(texts),
        nll=answer_nll(model, rendered, answers).sum().item() / max(1, sum(map(len, answers))),
    )


@torch.no_grad()
def answer_nll(
    model: ChatModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
) -> torch.Tensor:
    """Negative log-likelihood [N] of each answer after its prompt, as token ids, on the CPU.

    In nats, summed over an answer's tokens; with adapters off, steered if a steering context is
    open.
    """
    head = OutputHead.of(model.model)
    pad_id = model.tokenizer.pad_token_id
    sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]

    def score(rows: list[int]) -> list[torch.Tensor]:
        given = [answers[row] for row in rows]
        states = completion_states(
            model.model, [prompts[row] for row in rows], given, pad_id, run_last=True
        )
        found = []
        for predicting, answer in zip(states, given, strict=True):
            log_p = torch.log_softmax(head.logits(predicting), dim=-1)
            target = torch.tensor(list(answer), device=log_p.device)
            found.append(-log_p.gather(1, target[:, None]).sum().cpu())
        return found

    with base_weights(model.model):
        return torch.stack(row_by_row(sequences, batch_size, score, model.model.device))
