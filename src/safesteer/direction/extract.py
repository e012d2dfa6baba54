"""The refusal direction: candidates from one of two sources, chosen by what the model then does.

`harmful-harmless` is the published procedure for models that can already refuse. `refuse-comply`
contrasts openings of answers, refusing against complying, to the same harmful prompts; it also
works for models that cannot refuse yet. `auto` tries the first and falls back to the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from safesteer.config.settings import DirectionSettings
from safesteer.direction.activations import Keep, answer_means, means_of_kept
from safesteer.direction.behaviour import answer_nll, observe
from safesteer.direction.candidates import (
    Candidate,
    lasting_fault,
    refusal_scores,
    score_candidates,
)
from safesteer.direction.refusal_tokens import refusal_first_tokens
from safesteer.direction.vector import Direction
from safesteer.errors import InputError, SafeSteerError
from safesteer.models.chat import Message
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.steering import steer

Prompts = Sequence[Sequence[Message]]
Step = Callable[[str, int, int], None]  # (what is being done, done, total)

# Fewer prompts than this on either side give a mean that is mostly noise.
_LEAST_PROMPTS = 8
# Prompts from which the means of answer openings are taken, and on which behaviour is observed.
_OPENING_PROMPTS = 32
_OBSERVED_PROMPTS = 16
_SCORED_PROMPTS = 8


@dataclass
class DirectionResult:
    """The chosen direction and how it was found.

    Attributes:
        direction: the choice.
        candidates: every candidate with its scores and why it was rejected.
        qualified: whether the choice meets every threshold; if not it is the best of the rejected.
        notes: what a person should know, such as a fall-back and its reason.
    """

    direction: Direction
    candidates: list[Candidate]
    qualified: bool
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The content of direction/direction.json."""
        d = self.direction
        return {
            "method": d.method,
            "layer": d.layer,
            "position": d.position,
            "coefficient": d.coefficient,
            "norm": d.vector.norm().item(),
            "qualified": self.qualified,
            "notes": self.notes,
            "scores": [candidate.to_json() for candidate in self.candidates],
        }


def extract_direction(
    model: ChatModel,
    harmful_train: Prompts,
    harmless_train: Prompts,
    harmful_validation: Prompts,
    harmless_validation: Prompts,
    settings: DirectionSettings | None = None,
    *,
    on_step: Step | None = None,
) -> DirectionResult:
    """Find the refusal direction of a model (paper, section 3.1).

    A model that thinks is asked for its answers straight away, after an empty thinking block.

    When no candidate qualifies, the best one is returned with ``qualified`` False and a note.

    Raises SafeSteerError when there is no candidate at all, which only happens if the activations
    of the model do not differ between the two sides.
    """
    settings = settings or DirectionSettings()
    model = model.closed
    step = on_step or (lambda what, done, total: None)
    notes: list[str] = []
    candidates: list[Candidate] = []
    if settings.source in ("auto", "harmful-harmless"):
        found, reason = _harmful_harmless(
            model, harmful_train, harmless_train, harmful_validation, harmless_validation,
            settings, step,
        )  # fmt: skip
        candidates += found
        choice = _choose(candidates, settings)
        if choice is not None and not choice.rejected:
            return DirectionResult(choice.direction, candidates, True, notes)
        reason = reason or "no candidate meets every threshold"
        if settings.source == "harmful-harmless" and choice is None:
            raise SafeSteerError(f"harmful-harmless finds no direction: {reason}")
        if settings.source == "auto":
            notes.append(
                f"harmful-harmless finds no direction ({reason}); using refuse-comply instead"
            )
    if settings.source in ("auto", "refuse-comply"):
        candidates += _refuse_comply(
            model, harmful_train, harmful_validation, harmless_validation, settings, step
        )
    choice = _choose(candidates, settings)
    if choice is None:
        raise SafeSteerError("the activations of refusing and complying do not differ at any layer")
    if choice.rejected:
        notes.append(f"no direction qualifies; using the best one although {choice.rejected}")
    return DirectionResult(choice.direction, candidates, not choice.rejected, notes)


def _harmful_harmless(
    model: ChatModel,
    harmful_train: Prompts,
    harmless_train: Prompts,
    harmful_validation: Prompts,
    harmless_validation: Prompts,
    settings: DirectionSettings,
    step: Step,
) -> tuple[list[Candidate], str]:
    """The published procedure; returns the candidates and, if there are none, the reason."""
    tokens = refusal_first_tokens(model.chat)
    harmful = list(harmful_train)[: settings.advanced.train_prompts]
    harmless = list(harmless_train)[: settings.advanced.train_prompts]
    positions = len(model.chat.post_instruction_ids())

    def means(prompts: Prompts, keep: Keep) -> tuple[torch.Tensor, int]:
        return means_of_kept(
            model, prompts, positions, keep, progress=lambda d, t: step("mean activations", d, t)
        )

    of_harmful, refused = means(harmful, lambda last: _refusal_scores(model, last, tokens) > 0)
    of_harmless, answered = means(harmless, lambda last: _refusal_scores(model, last, tokens) < 0)
    if refused < _LEAST_PROMPTS or answered < _LEAST_PROMPTS:
        return [], (
            f"the model tends to refuse {refused} of {len(harmful)} harmful prompts and to"
            f" answer {answered} of {len(harmless)} harmless ones, too few to compare"
        )
    differences = (of_harmful - of_harmless).float()  # [P, L, D]
    candidates = [
        Candidate(Direction(differences[p, layer], layer, 1.0, "harmful-harmless", p - positions))
        for layer in _layers(model, settings)
        for p in range(positions)
    ]

    def score(chosen: Sequence[Candidate], what: str) -> None:
        score_candidates(
            model,
            chosen,
            list(harmful_validation)[: settings.advanced.validation_prompts],
            list(harmless_validation)[: settings.advanced.validation_prompts],
            tokens,
            settings,
            progress=lambda done, total: step(what, done, total),
        )

    score(candidates, "score candidates")
    passed = [c for c in candidates if not c.rejected]
    if passed:
        finalists = sorted(passed, key=lambda c: c.ablation or 0.0)[: settings.advanced.finalists]
    else:  # the best of the rejected: those that come nearest to making the model refuse
        scored = [c for c in candidates if c.addition is not None]
        finalists = sorted(scored, key=lambda c: -(c.addition or 0.0))[
            : settings.advanced.finalists
        ]
    # The published strength first; the others only where it does not do.
    _observe(model, finalists, harmful_validation, harmless_validation, settings, step)
    if not any(_qualifies(c) for c in finalists):
        more = [
            Candidate(replace(c.direction, coefficient=strength))
            for c in finalists[:2]
            for strength in settings.advanced.coefficients
            if strength != c.direction.coefficient
        ]
        score(more, "score other strengths")
        _observe(model, more, harmful_validation, harmless_validation, settings, step)
        candidates += more
    return candidates, "" if finalists else "the two means do not differ"


def _refusal_scores(
    model: ChatModel,
    last: torch.Tensor,  # [B, D]
    tokens: Sequence[int],
) -> torch.Tensor:  # [B]
    logits = OutputHead.of(model.model).logits(last.contiguous())
    return refusal_scores(torch.log_softmax(logits, dim=-1), tokens)


def _refuse_comply(
    model: ChatModel,
    harmful_train: Prompts,
    harmful_validation: Prompts,
    harmless_validation: Prompts,
    settings: DirectionSettings,
    step: Step,
) -> list[Candidate]:
    prompts = list(harmful_train)[: min(settings.advanced.train_prompts, _OPENING_PROMPTS)]
    refusing, complying = (
        answer_means(model, prompts, openings, progress=lambda d, t: step("answer openings", d, t))
        for openings in (settings.advanced.refusing_openings, settings.advanced.complying_openings)
    )
    difference = (refusing - complying).float()  # [L, D]
    judged = list(harmful_validation)[:_SCORED_PROMPTS]
    candidates = []
    layers = _layers(model, settings)
    for index, layer in enumerate(layers):
        candidate = Candidate(Direction(difference[layer], layer, 1.0, "refuse-comply"))
        if not torch.isfinite(difference[layer]).all() or difference[layer].norm() == 0:
            candidate.rejected = "the two means do not differ"
        elif fault := lasting_fault(candidate, model.layers, settings):
            candidate.rejected = fault
        else:
            with steer(model.model, layer, difference[layer]):
                candidate.addition = opening_margin(model, judged, settings)
        candidates.append(candidate)
        step("score layers", index + 1, len(layers))
    # The likelihood of the openings orders the layers; what the model then says decides.
    open_ = sorted((c for c in candidates if not c.rejected), key=lambda c: -(c.addition or 0.0))[
        : settings.advanced.finalists
    ]
    finalists = [
        c
        if strength == c.direction.coefficient
        else replace(c, direction=replace(c.direction, coefficient=strength))
        for c in open_
        for strength in settings.advanced.coefficients
    ]
    _observe(model, finalists, harmful_validation, harmless_validation, settings, step)
    known = {id(c) for c in candidates}
    return candidates + [c for c in finalists if id(c) not in known]


def opening_margin(model: ChatModel, prompts: Prompts, settings: DirectionSettings) -> float:
    """How much likelier the first refusing opening is than the first complying one, nats per token.

    Asked of the model as it is now, so inside a steering context of the steered model. A better
    guide to what it will say than its first token: "I" begins refusals and other answers alike.
    """
    rendered = [model.chat.ids(messages) for messages in prompts]
    openings = (settings.advanced.refusing_openings[0], settings.advanced.complying_openings[0])
    tails = [model.chat.answer_ids(opening) for opening in openings for _ in rendered]
    nll = answer_nll(model, rendered * 2, tails)  # in one batch: they share what they begin with
    refusing, complying = nll.reshape(2, -1).sum(1) / torch.tensor(
        [len(tails[0]) * len(rendered), len(tails[-1]) * len(rendered)]
    )
    return float(complying - refusing)


def _observe(
    model: ChatModel,
    candidates: Sequence[Candidate],
    harmful: Prompts,
    harmless: Prompts,
    settings: DirectionSettings,
    step: Step,
) -> None:
    """Steer with each candidate, read what the model says, and reject by the thresholds."""
    harmful, harmless = list(harmful)[:_OBSERVED_PROMPTS], list(harmless)[:_OBSERVED_PROMPTS]
    if not candidates:
        return
    own = observe(model, None, harmful)
    for index, candidate in enumerate(candidates):
        seen = observe(model, candidate.direction, harmful)
        candidate.flip_rate = seen.refusals
        candidate.loops = seen.loops
        candidate.harmless_refusals = None
        candidate.perplexity_ratio = float(torch.tensor(seen.nll - own.nll).exp())
        if seen.refusals >= settings.advanced.min_flip_rate:
            candidate.harmless_refusals = observe(model, candidate.direction, harmless).refusals
        if not candidate.rejected:
            candidate.rejected = _fault(candidate, settings)
        step("judge steered answers", index + 1, len(candidates))


def _fault(candidate: Candidate, settings: DirectionSettings) -> str:
    flip, ratio = candidate.flip_rate or 0.0, candidate.perplexity_ratio or 0.0
    least, most = settings.advanced.min_flip_rate, settings.advanced.max_perplexity_ratio
    if flip < least:
        return f"the steered model refuses {flip:.0%} of harmful prompts (< {least:.0%})"
    if ratio > most:
        return f"its text is not fluent (perplexity x{ratio:.1f} > x{most:g})"
    if (candidate.loops or 0.0) > 0.1:
        return f"{candidate.loops:.0%} of its answers loop"
    return ""


def _qualifies(candidate: Candidate) -> bool:
    return candidate.flip_rate is not None and not candidate.rejected


def _choose(candidates: Sequence[Candidate], settings: DirectionSettings) -> Candidate | None:
    """The qualified candidate that refuses most; among near-equals the least over-refusing."""
    observed = [c for c in candidates if c.flip_rate is not None]
    pool = [c for c in observed if not c.rejected] or observed
    return min(
        pool,
        key=lambda c: (
            # One prompt more or less is noise: steps of a tenth.
            -round((c.flip_rate or 0.0) * 10),
            c.harmless_refusals if c.harmless_refusals is not None else 1.0,
            c.perplexity_ratio or 0.0,
        ),
        default=None,
    )


def _layers(model: ChatModel, settings: DirectionSettings) -> list[int]:
    chosen, dropped = settings.advanced.layers, settings.advanced.drop_last_layers
    layers = list(range(1, model.layers)) if chosen is None else chosen
    wrong = [layer for layer in layers if not 0 <= layer < model.layers]
    if wrong:
        raise InputError(
            f"direction.advanced.layers: {wrong[0]} is outside 0..{model.layers - 1} of this model"
        )
    allowed = int(model.layers * (1 - dropped))
    if not any(layer < allowed for layer in layers):
        raise InputError(
            f"direction.advanced.drop_last_layers = {dropped:g} leaves none of the layers"
            f" {layers[:5]} of this model, which has {model.layers}. Try: a smaller share"
        )
    return layers
