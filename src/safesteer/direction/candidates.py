"""Candidate directions and the scores of the published selection (Arditi et al. 2024).

One candidate per layer, and per post-instruction position where the source has positions. Every
score that is computed is kept with its candidate, and so is the reason for which it is rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from safesteer.config import DirectionSettings
from safesteer.models.chat import Message, pad_left
from safesteer.models.forward import hidden_states
from safesteer.models.generate import Progress
from safesteer.models.head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.steering import ablate, steer
from safesteer.teacher import Direction


@dataclass
class Candidate:
    """A direction with its scores.

    Attributes:
        direction: vector, layer, position and strength.
        ablation: refusal score of harmful prompts with the direction projected out (lower: better).
        addition: with the direction added, the refusal score of harmless prompts
            (harmful-harmless; must be high) or the margin of a refusing over a complying opening
            on harmful ones (refuse-comply; orders the layers).
        kl: KL(base || ablated) of the next token on harmless prompts (must be low).
        flip_rate: share of harmful validation prompts that the steered model refuses.
        harmless_refusals: share of harmless validation prompts that it refuses.
        perplexity_ratio: perplexity of its answers under the model / of the model's own answers.
        loops: share of its answers that repeat themselves.
        rejected: why it cannot be chosen; empty for those that can.
    """

    direction: Direction
    ablation: float | None = None
    addition: float | None = None
    kl: float | None = None
    flip_rate: float | None = None
    harmless_refusals: float | None = None
    perplexity_ratio: float | None = None
    loops: float | None = None
    rejected: str = ""

    def to_json(self) -> dict[str, Any]:
        """The candidate without its vector, as it stands in direction.json."""
        d = self.direction
        scores = {key: value for key, value in vars(self).items() if key != "direction"}
        return {
            "method": d.method,
            "layer": d.layer,
            "position": d.position,
            "coefficient": d.coefficient,
            "norm": d.vector.norm().item(),
            **scores,
        }


def refusal_scores(
    log_probs: torch.Tensor,  # [B, V]
    refusal_tokens: Sequence[int],
) -> torch.Tensor:  # [B]
    """log P(R) - log(1 - P(R)): how likely the answer begins as a refusal (PAPER section 2)."""
    p = log_probs.double()[:, list(refusal_tokens)].exp().sum(-1).clamp(1e-12, 1 - 1e-12)
    return torch.log(p) - torch.log1p(-p)


@torch.no_grad()
def next_token_log_probs(
    model: ChatModel,
    prompts: Sequence[Sequence[Message]],
    hook: AbstractContextManager[None] | None = None,
    *,
    batch_size: int = 32,
) -> torch.Tensor:  # [N, V], float32
    """Log-probabilities of the first token of the answer; only the last position is projected."""
    sequences = [model.chat.ids(messages) for messages in prompts]
    head = OutputHead.of(model.model)
    parts = []
    with hook or nullcontext():
        for start in range(0, len(sequences), batch_size):
            ids, mask = pad_left(
                sequences[start : start + batch_size],
                model.tokenizer.pad_token_id,
                model.model.device,
            )
            last = hidden_states(model.model, ids, mask)[:, -1].contiguous()
            parts.append(torch.log_softmax(head.logits(last), dim=-1))
    return torch.cat(parts)


def lasting_fault(candidate: Candidate, layers: int, settings: DirectionSettings) -> str:
    """Why a candidate cannot be chosen at any strength; empty if nothing speaks against it."""
    if candidate.direction.layer >= int(layers * (1 - settings.drop_last_layers)):
        return f"among the last {settings.drop_last_layers:.0%} of layers"
    if candidate.kl is not None and candidate.kl > settings.max_kl:
        return f"ablating it changes harmless answers (KL {candidate.kl:.3f} > {settings.max_kl:g})"
    return ""


def score_candidates(
    model: ChatModel,
    candidates: Sequence[Candidate],
    harmful: Sequence[Sequence[Message]],
    harmless: Sequence[Sequence[Message]],
    refusal_tokens: Sequence[int],
    settings: DirectionSettings,
    *,
    progress: Progress | None = None,
) -> None:
    """Fill in addition, KL and ablation scores, and reject by the published thresholds.

    A candidate has to pass every threshold, so the first one that it fails is the last score that
    is made for it: the others stay None. The winner is that of the full table.
    """
    base: torch.Tensor | None = None
    for index, candidate in enumerate(candidates):
        d = candidate.direction
        if not torch.isfinite(d.vector).all() or d.vector.norm() == 0:
            candidate.rejected = "the two means do not differ"
        else:
            candidate.rejected = lasting_fault(candidate, model.layers, settings)
        if not candidate.rejected:
            hook = steer(model.model, d.layer, d.vector, d.coefficient)
            added = next_token_log_probs(model, harmless, hook)
            candidate.addition = refusal_scores(added, refusal_tokens).mean().item()
            if candidate.addition < settings.min_addition_score:
                candidate.rejected = (
                    f"adding it does not induce refusal ({candidate.addition:.2f} <"
                    f" {settings.min_addition_score:g})"
                )
        if not candidate.rejected:
            base = next_token_log_probs(model, harmless) if base is None else base
            ablated = next_token_log_probs(model, harmless, ablate(model.model, d.vector))
            candidate.kl = (base.exp() * (base - ablated)).sum(-1).mean().item()
            candidate.rejected = lasting_fault(candidate, model.layers, settings)
        if not candidate.rejected:
            without = next_token_log_probs(model, harmful, ablate(model.model, d.vector))
            candidate.ablation = refusal_scores(without, refusal_tokens).mean().item()
        if progress is not None:
            progress(index + 1, len(candidates))
