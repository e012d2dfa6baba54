"""Candidate directions and the scores of the published selection (Arditi et al. 2024).

One candidate per layer, and per post-instruction position if the source has positions. Each
candidate keeps the scores that were computed for it and the reason for its rejection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from safesteer.config.settings import DirectionSettings
from safesteer.direction.edited_passes import RepeatedPrompts
from safesteer.direction.vector import Direction
from safesteer.events import Progress
from safesteer.models.chat import Message
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.steering import ablate, steer

# Candidates that share batches; with more of them each batch would hold too few prompts.
_TOGETHER = 8


@dataclass
class Candidate:
    """A direction with its scores.

    Attributes:
        direction: vector, layer, position and coefficient.
        ablation: refusal score of harmful prompts with the direction projected out; lower is
            better.
        addition: with the direction added, the refusal score of harmless prompts
            (harmful-harmless; must be high), or how much likelier a refusing opening is than a
            complying one on harmful prompts (refuse-comply; orders the layers).
        kl: KL(base || ablated) of the next token on harmless prompts, in nats; must be low.
        flip_rate: share of harmful validation prompts that the steered model refuses.
        harmless_refusals: share of harmless validation prompts that it refuses.
        perplexity_ratio: perplexity of the steered model's answers over that of the model's own,
            both under the unsteered model.
        loops: share of its answers that end in a loop.
        rejected: why it cannot be chosen; empty if it can.
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
        """The candidate without its vector, as direction.json lists it."""
        scores = {key: value for key, value in vars(self).items() if key != "direction"}
        return {**self.direction.to_json(), **scores}


def refusal_scores(
    log_probs: torch.Tensor,  # [B, V]
    refusal_tokens: Sequence[int],
) -> torch.Tensor:
    """Log odds [B] that the answer starts with a refusal token: log P(R) - log(1 - P(R)).

    Source: Arditi et al. 2024 (arXiv 2406.11717), refusal metric.
    """
    p = log_probs[:, list(refusal_tokens)].double().exp().sum(-1).clamp(1e-12, 1 - 1e-12)
    return torch.log(p) - torch.log1p(-p)


def unfit_at_any_strength(candidate: Candidate, layers: int, settings: DirectionSettings) -> str:
    """Why its layer, of `layers`, or its KL excludes a candidate at any coefficient; or ""."""
    dropped, most = settings.advanced.drop_last_layers, settings.advanced.max_kl
    if candidate.direction.layer >= int(layers * (1 - dropped)):
        return f"among the last {dropped:.0%} of layers"
    if candidate.kl is not None and candidate.kl > most:
        return f"ablating it changes harmless answers (KL {candidate.kl:.3f} > {most:g})"
    return ""


def empty_contrast(vector: torch.Tensor) -> str:
    """Why a difference of means is no direction; or ""."""
    if not torch.isfinite(vector).all() or vector.norm() == 0:
        return "the two means do not differ"
    return ""


@torch.no_grad()
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

    The first threshold that a candidate fails is its last score, the others stay None; the winner
    is that of the full table. The tests run in the order of their cost: the layer costs nothing,
    addition the blocks from its layer on, KL all blocks; the ablation score rejects no candidate.

    Args:
        harmful: conversations for the ablation score.
        harmless: conversations for addition and KL.
        refusal_tokens: R of the refusal score.

    Source: Arditi et al. 2024 (arXiv 2406.11717), direction selection.
    """
    head = OutputHead.of(model.model)

    def log_probs(hidden: torch.Tensor) -> torch.Tensor:  # [N, D] -> [N, V]
        return torch.log_softmax(head.logits(hidden.contiguous()), dim=-1)

    def refusal(hidden: torch.Tensor) -> float:
        return refusal_scores(log_probs(hidden), refusal_tokens).mean().item()

    def report() -> None:
        if progress is not None:
            done = sum(bool(c.rejected) or c.ablation is not None for c in candidates)
            progress(done, len(candidates))

    def ablated(prompts: RepeatedPrompts) -> Iterator[tuple[Candidate, torch.Tensor]]:
        for some in _together([c for c in remaining if not c.rejected]):
            vectors = torch.stack([c.direction.vector for c in some])
            hidden = prompts.last_hidden(vectors, partial(ablate, model.model))
            yield from zip(some, hidden, strict=True)
            report()

    for c in candidates:
        c.rejected = empty_contrast(c.direction.vector) or unfit_at_any_strength(
            c, model.layers, settings
        )
    remaining = [c for c in candidates if not c.rejected]
    report()
    if not remaining:
        return

    prompts = RepeatedPrompts(model, harmless)
    for layers in prompts.groups([c.direction.layer for c in remaining]):
        base = log_probs(prompts.keep(layers))
        for layer in layers:
            adds = partial(steer, model.model, layer)
            for some in _together([c for c in remaining if c.direction.layer == layer]):
                steps = torch.stack([c.direction.coefficient * c.direction.vector for c in some])
                for c, hidden in zip(some, prompts.last_hidden(steps, adds, layer), strict=True):
                    c.addition = refusal(hidden)
                    if c.addition < settings.advanced.min_addition_score:
                        c.rejected = (
                            f"adding it does not induce refusal ({c.addition:.2f} <"
                            f" {settings.advanced.min_addition_score:g})"
                        )
                report()

    for c, hidden in ablated(prompts):
        c.kl = (base.exp() * (base - log_probs(hidden))).sum(-1).mean().item()
        c.rejected = unfit_at_any_strength(c, model.layers, settings)
    for c, hidden in ablated(RepeatedPrompts(model, harmful)):
        c.ablation = refusal(hidden)


def _together(candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    """Groups of candidates that share a batch."""
    for start in range(0, len(candidates), _TOGETHER):
        yield candidates[start : start + _TOGETHER]
