"""Candidate directions and the scores of the published selection (Arditi et al. 2024).

One candidate per layer, and per post-instruction position where the source has positions. Every
score that is computed is kept with its candidate, and so is the reason for which it is rejected.
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
from safesteer.models.chat import Message
from safesteer.models.generate import Progress
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.steering import ablate, steer

# Candidates whose passes share batches; more of them would leave too few prompts to each batch.
_TOGETHER = 8


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
    p = log_probs[:, list(refusal_tokens)].double().exp().sum(-1).clamp(1e-12, 1 - 1e-12)
    return torch.log(p) - torch.log1p(-p)


def lasting_fault(candidate: Candidate, layers: int, settings: DirectionSettings) -> str:
    """Why a candidate cannot be chosen at any strength; empty if nothing speaks against it."""
    dropped, most = settings.advanced.drop_last_layers, settings.advanced.max_kl
    if candidate.direction.layer >= int(layers * (1 - dropped)):
        return f"among the last {dropped:.0%} of layers"
    if candidate.kl is not None and candidate.kl > most:
        return f"ablating it changes harmless answers (KL {candidate.kl:.3f} > {most:g})"
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

    A candidate has to pass every threshold, so the first one that it fails is the last score that
    is made for it: the others stay None. The winner is that of the full table. The order of the
    tests is that of their cost: the layer costs nothing, addition the blocks from its layer on, KL
    all blocks; the ablation score rejects nobody.
    """
    head = OutputHead.of(model.model)

    def log_probs(hidden: torch.Tensor) -> torch.Tensor:  # [N, D] -> [N, V]
        return torch.log_softmax(head.logits(hidden.contiguous()), dim=-1)

    def refusal(hidden: torch.Tensor) -> float:
        return refusal_scores(log_probs(hidden), refusal_tokens).mean().item()

    def tell() -> None:
        if progress is not None:
            done = sum(bool(c.rejected) or c.ablation is not None for c in candidates)
            progress(done, len(candidates))

    for c in candidates:
        vector = c.direction.vector
        if not torch.isfinite(vector).all() or vector.norm() == 0:
            c.rejected = "the two means do not differ"
        else:
            c.rejected = lasting_fault(c, model.layers, settings)
    open_ = [c for c in candidates if not c.rejected]
    tell()
    if not open_:
        return

    prompts = RepeatedPrompts(model, harmless)
    for layers in prompts.groups([c.direction.layer for c in open_]):
        base = log_probs(prompts.keep(layers))
        for layer in layers:
            adds = partial(steer, model.model, layer)
            for some in _together([c for c in open_ if c.direction.layer == layer]):
                steps = torch.stack([c.direction.coefficient * c.direction.vector for c in some])
                for c, hidden in zip(some, prompts.last_hidden(steps, adds, layer), strict=True):
                    c.addition = refusal(hidden)
                    if c.addition < settings.advanced.min_addition_score:
                        c.rejected = (
                            f"adding it does not induce refusal ({c.addition:.2f} <"
                            f" {settings.advanced.min_addition_score:g})"
                        )
                tell()

    removes = partial(ablate, model.model)
    for some in _together([c for c in open_ if not c.rejected]):
        vectors = torch.stack([c.direction.vector for c in some])
        for c, hidden in zip(some, prompts.last_hidden(vectors, removes), strict=True):
            c.kl = (base.exp() * (base - log_probs(hidden))).sum(-1).mean().item()
            c.rejected = lasting_fault(c, model.layers, settings)
        tell()

    prompts = RepeatedPrompts(model, harmful)
    for some in _together([c for c in open_ if not c.rejected]):
        vectors = torch.stack([c.direction.vector for c in some])
        for c, hidden in zip(some, prompts.last_hidden(vectors, removes), strict=True):
            c.ablation = refusal(hidden)
        tell()


def _together(candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    """Parts of the candidates, few enough to share a batch."""
    for start in range(0, len(candidates), _TOGETHER):
        yield candidates[start : start + _TOGETHER]
