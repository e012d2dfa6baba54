"""What a teacher does: how often it refuses, and whether its text stays fluent.

Directions are chosen by this and not by a proxy: the model is steered, it answers validation
prompts, a judge reads the answers, and the unsteered model says how surprising they are.
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
from safesteer.models.oom import in_batches


@dataclass(frozen=True)
class Behaviour:
    """Rates over the prompts, and the mean negative log-likelihood per token of the answers."""

    refusals: float
    loops: float
    nll: float


def observe(
    model: ChatModel,
    direction: Direction | None,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 24,
    batch_size: int = 64,
) -> Behaviour:
    """Describe the greedy answers of the steered model; a direction of None does not steer."""
    rendered = [model.chat.ids(messages) for messages in prompts]
    steered = nullcontext() if direction is None else direction.steer(model.model)
    with base_weights(model.model), steered:
        answers = generate(
            model.model,
            model.tokenizer,
            rendered,
            Decoding(max_new_tokens),
            batch_size=batch_size,
        )
    texts = [model.chat.decode(answer) for answer in answers]
    refused = [
        judge_refusal(text, str(messages[-1]["content"])).refused
        for text, messages in zip(texts, prompts, strict=True)
    ]
    return Behaviour(
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
) -> torch.Tensor:  # [N], on the CPU
    """Negative log-likelihood of each answer, in nats; an adapter is off."""
    head = OutputHead.of(model.model)

    def score(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[torch.Tensor]:
        asked, given = zip(*pairs, strict=True)
        pad_id = model.tokenizer.pad_token_id
        found = []
        states = completion_states(model.model, asked, given, pad_id, run_last=True)
        for predicting, answer in zip(states, given, strict=True):
            log_p = torch.log_softmax(head.logits(predicting), dim=-1)
            target = torch.tensor(list(answer), device=log_p.device)
            found.append(-log_p.gather(1, target[:, None]).sum().cpu())
        return found

    with base_weights(model.model):
        pairs = list(zip(prompts, answers, strict=True))
        return torch.stack([nll for part in in_batches(pairs, batch_size, score) for nll in part])
