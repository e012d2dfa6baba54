"""Search for the refusal direction: candidates from one of two sources, chosen by behavior.

`harmful-harmless` is the published procedure for models that can already refuse. `refuse-comply`
contrasts refusing and complying openings of answers to the same harmful prompts, and also works for
models that cannot refuse yet. `auto` tries the first and falls back to the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from safesteer.config.settings import DirectionSettings
from safesteer.direction.activations import Keep, answer_means, prompt_means
from safesteer.direction.behavior import OBSERVED_TOKENS, answer_nll, observe
from safesteer.direction.candidates import (
    Candidate,
    empty_contrast,
    refusal_scores,
    score_candidates,
    unfit_at_any_strength,
)
from safesteer.direction.refusal_tokens import refusal_first_tokens
from safesteer.direction.vector import Direction
from safesteer.errors import InputError, SafeSteerError
from safesteer.models.chat import Message
from safesteer.models.context import fitting_prompts
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.steering import steer

Prompts = Sequence[Sequence[Message]]
Step = Callable[[str, int, int], None]  # (what is being done, done, total)

# With fewer prompts on either side the mean is mostly noise.
_MIN_PROMPTS = 8
# Prompts for the means of answer openings, for observing behavior, for the margin of the openings.
_OPENING_PROMPTS = 32
_OBSERVED_PROMPTS = 16
_MARGIN_PROMPTS = 8
_MAX_LOOPS = 0.1


@dataclass
class DirectionResult:
    """The chosen direction and how it was found."""

    direction: Direction
    candidates: list[Candidate]
    qualified: bool  # whether the choice meets every threshold; else it is the best of the rejected
    notes: list[str] = field(default_factory=list)  # for the user: why it fell back, for one

    def to_json(self) -> dict[str, Any]:
        """The content of direction/direction.json."""
        return {
            **self.direction.to_json(),
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
    """Find the refusal direction of a model.

    Answers of a model that thinks follow an empty thinking block.

    Args:
        model: the model; it does not change.
        harmful_train: conversations for the means.
        harmless_train: likewise, for the source harmful-harmless.
        harmful_validation: conversations to score and choose candidates on.
        harmless_validation: likewise.
        settings: source, thresholds and sizes; the defaults if None.
        on_step: called with (what is being done, done, total).

    Returns:
        The choice; if no candidate meets every threshold, the best of them with a note.

    Raises:
        InputError: no prompt of a set fits into the model's positions, or `layers` names no layer
            of the model, or none that may be chosen.
        SafeSteerError: there is no candidate, because the activations of the two sides do not
            differ, or because the model refuses too few prompts for harmful-harmless alone.

    Source: SafeSteer (arXiv 2606.02530), section 3.1.
    """
    settings = settings or DirectionSettings()
    model = model.without_thinking
    train = {"harmful": harmful_train, "harmless": harmless_train}
    validation = {"harmful": harmful_validation, "harmless": harmless_validation}
    harmful_train, harmless_train = _fitting(model, settings, "training", train)
    harmful_validation, harmless_validation = _fitting(model, settings, "validation", validation)
    search = _Search(
        model,
        harmful_validation,
        harmless_validation,
        settings,
        on_step or (lambda what, done, total: None),
    )
    notes: list[str] = []
    candidates: list[Candidate] = []
    if settings.source in ("auto", "harmful-harmless"):
        found, problem = search.harmful_harmless(harmful_train, harmless_train)
        candidates += found
        choice = choose(candidates)
        if choice is not None and not choice.rejected:
            return DirectionResult(choice.direction, candidates, True, notes)
        problem = problem or "no candidate meets every threshold"
        if settings.source == "harmful-harmless" and choice is None:
            raise SafeSteerError(
                f"harmful-harmless finds no direction: {problem}. Try:"
                " direction.source=refuse-comply"
            )
        if settings.source == "auto":
            notes.append(
                f"harmful-harmless finds no direction ({problem}); using refuse-comply instead"
            )
    if settings.source in ("auto", "refuse-comply"):
        candidates += search.refuse_comply(harmful_train)
    choice = choose(candidates)
    if choice is None:
        raise SafeSteerError(
            "the activations of refusing and complying answers do not differ at any layer. Try:"
            " other direction.advanced.refusing_openings and complying_openings"
        )
    if choice.rejected:
        notes.append(f"no direction qualifies; using the best one although {choice.rejected}")
    return DirectionResult(choice.direction, candidates, not choice.rejected, notes)


def layers_to_consider(settings: DirectionSettings, count: int) -> list[int]:
    """The layers of a model with `count` of them to search, in order; InputError without any."""
    chosen, dropped = settings.advanced.layers, settings.advanced.drop_last_layers
    layers = list(range(1, count)) if chosen is None else chosen
    wrong = [layer for layer in layers if not 0 <= layer < count]
    if wrong:
        raise InputError(
            f"direction.advanced.layers = {layers}, and the model has layers 0 to {count - 1}."
            f" Try: other layers than {wrong[0]}"
        )
    allowed = int(count * (1 - dropped))
    if not any(layer < allowed for layer in layers):
        raise InputError(
            f"direction.advanced.drop_last_layers = {dropped:g} leaves none of the layers"
            f" {layers[:5]} of this model, which has {count}. Try: a smaller share"
        )
    return layers


def _fitting(
    model: ChatModel, settings: DirectionSettings, part: str, sets: Mapping[str, Prompts]
) -> list[Prompts]:
    """The prompts of each set that fit into the model's positions, together with every answer."""
    openings = settings.advanced.refusing_openings + settings.advanced.complying_openings
    answer = max(OBSERVED_TOKENS, *(len(model.chat.answer_ids(text)) for text in openings))
    kept: list[Prompts] = []
    for name, prompts in sets.items():
        rendered = [model.chat.ids(messages) for messages in prompts]
        rows = fitting_prompts(model.model, rendered, answer, f"{name} {part} prompts")
        kept.append([prompts[row] for row in rows])
    return kept


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The qualified candidate that refuses most; among near-equals the least over-refusing.

    If none qualifies, the best of the observed; None if none was observed.
    """
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


@dataclass(frozen=True)
class _Search:
    """The two sources of candidates, scored and observed on validation prompts."""

    model: ChatModel  # without thinking
    harmful: Prompts
    harmless: Prompts
    settings: DirectionSettings
    step: Step

    def harmful_harmless(
        self, harmful_train: Prompts, harmless_train: Prompts
    ) -> tuple[list[Candidate], str]:
        """Candidates of the published procedure, or none and the reason.

        Source: Arditi et al. 2024 (arXiv 2406.11717), difference in means and selection.
        """
        model, chosen = self.model, self.settings.advanced
        tokens = refusal_first_tokens(model.chat)
        positions = len(model.chat.post_instruction_ids())
        harmful = list(harmful_train)[: chosen.train_prompts]
        harmless = list(harmless_train)[: chosen.train_prompts]

        def means(prompts: Prompts, keep: Keep) -> tuple[torch.Tensor, int]:
            return prompt_means(
                model, prompts, positions, keep, progress=self._progress("mean activations")
            )

        refusal = partial(_first_token_scores, model, tokens=tokens)
        of_harmful, refused = means(harmful, lambda last: refusal(last) > 0)
        of_harmless, answered = means(harmless, lambda last: refusal(last) < 0)
        if refused < _MIN_PROMPTS or answered < _MIN_PROMPTS:
            return [], (
                f"the model tends to refuse {refused} of {len(harmful)} harmful prompts and to"
                f" answer {answered} of {len(harmless)} harmless ones, too few to compare"
            )
        contrast = (of_harmful - of_harmless).float()  # [P, L, D]
        candidates = [
            Candidate(Direction(contrast[p, layer], layer, 1.0, "harmful-harmless", p - positions))
            for layer in self._layers()
            for p in range(positions)
        ]
        self._score(candidates, tokens, "score candidates")
        finalists = self._finalists(candidates)
        # The published strength first; the others only if no finalist qualifies with it.
        self.observe(finalists)
        if all(c.rejected for c in finalists):
            others = [
                Candidate(replace(c.direction, coefficient=strength))
                for c in finalists[:2]
                for strength in chosen.coefficients
                if strength != c.direction.coefficient
            ]
            self._score(others, tokens, "score other strengths")
            self.observe(others)
            candidates += others
        return candidates, "" if finalists else "the two means do not differ"

    def refuse_comply(self, harmful_train: Prompts) -> list[Candidate]:
        """One candidate per layer from the openings of answers, the best at several strengths."""
        model, chosen = self.model, self.settings.advanced
        prompts = list(harmful_train)[: min(chosen.train_prompts, _OPENING_PROMPTS)]
        refusing, complying = (
            answer_means(model, prompts, openings, progress=self._progress("answer openings"))
            for openings in (chosen.refusing_openings, chosen.complying_openings)
        )
        contrast = (refusing - complying).float()  # [L, D]
        judged = list(self.harmful)[:_MARGIN_PROMPTS]
        candidates = []
        layers = self._layers()
        for done, layer in enumerate(layers, start=1):
            candidate = Candidate(Direction(contrast[layer], layer, 1.0, "refuse-comply"))
            candidate.rejected = empty_contrast(contrast[layer]) or unfit_at_any_strength(
                candidate, model.layers, self.settings
            )
            if not candidate.rejected:
                with steer(model.model, layer, contrast[layer]):
                    candidate.addition = refusal_margin(model, judged, self.settings)
            candidates.append(candidate)
            self.step("score layers", done, len(layers))
        # The likelihood of the openings orders the layers; behavior decides.
        best = sorted(
            (c for c in candidates if not c.rejected), key=lambda c: -(c.addition or 0.0)
        )[: chosen.finalists]
        finalists = [
            c
            if strength == c.direction.coefficient
            else replace(c, direction=replace(c.direction, coefficient=strength))
            for c in best
            for strength in chosen.coefficients
        ]
        self.observe(finalists)
        known = {id(c) for c in candidates}
        return candidates + [c for c in finalists if id(c) not in known]

    def observe(self, candidates: Sequence[Candidate]) -> None:
        """Steer with each candidate, judge the answers, and reject by the thresholds."""
        if not candidates:
            return
        least = self.settings.advanced.min_flip_rate
        harmful = list(self.harmful)[:_OBSERVED_PROMPTS]
        harmless = list(self.harmless)[:_OBSERVED_PROMPTS]
        own = observe(self.model, None, harmful)
        for done, candidate in enumerate(candidates, start=1):
            seen = observe(self.model, candidate.direction, harmful)
            candidate.flip_rate = seen.refusals
            candidate.loops = seen.loops
            candidate.harmless_refusals = None
            candidate.perplexity_ratio = float(torch.tensor(seen.nll - own.nll).exp())
            if seen.refusals >= least:
                candidate.harmless_refusals = observe(
                    self.model, candidate.direction, harmless
                ).refusals
            candidate.rejected = candidate.rejected or unfit_by_behavior(candidate, self.settings)
            self.step("judge steered answers", done, len(candidates))

    def _score(self, candidates: Sequence[Candidate], tokens: Sequence[int], what: str) -> None:
        count = self.settings.advanced.validation_prompts
        score_candidates(
            self.model,
            candidates,
            list(self.harmful)[:count],
            list(self.harmless)[:count],
            tokens,
            self.settings,
            progress=self._progress(what),
        )

    def _finalists(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The lowest ablation scores; if all are rejected, those that come nearest to refusing."""
        count = self.settings.advanced.finalists
        passed = [c for c in candidates if not c.rejected]
        if passed:
            return sorted(passed, key=lambda c: c.ablation or 0.0)[:count]
        scored = [c for c in candidates if c.addition is not None]
        return sorted(scored, key=lambda c: -(c.addition or 0.0))[:count]

    def _layers(self) -> list[int]:
        return layers_to_consider(self.settings, self.model.layers)

    def _progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.step(what, done, total)


def refusal_margin(model: ChatModel, prompts: Prompts, settings: DirectionSettings) -> float:
    """Log-likelihood of the first refusing opening minus the complying one's, in nats per token.

    Of the model as it is, steered if a steering context is open. This predicts the answer better
    than its first token does: "I" begins refusals and other answers alike.
    """
    rendered = [model.chat.ids(messages) for messages in prompts]
    openings = (settings.advanced.refusing_openings[0], settings.advanced.complying_openings[0])
    tails = [model.chat.answer_ids(opening) for opening in openings for _ in rendered]
    nll = answer_nll(model, rendered * 2, tails)  # in one batch: they share their prefix
    refusing, complying = nll.reshape(2, -1).sum(1) / torch.tensor(
        [len(tails[0]) * len(rendered), len(tails[-1]) * len(rendered)]
    )
    return float(complying - refusing)


def unfit_by_behavior(candidate: Candidate, settings: DirectionSettings) -> str:
    """Why the steered model's answers exclude a candidate; or ""."""
    flip, ratio = candidate.flip_rate or 0.0, candidate.perplexity_ratio or 0.0
    least, most = settings.advanced.min_flip_rate, settings.advanced.max_perplexity_ratio
    if flip < least:
        return f"the steered model refuses {flip:.0%} of harmful prompts (< {least:.0%})"
    if ratio > most:
        return f"its text is not fluent (perplexity x{ratio:.1f} > x{most:g})"
    if (candidate.loops or 0.0) > _MAX_LOOPS:
        return f"{candidate.loops:.0%} of its answers loop"
    return ""


def _first_token_scores(
    model: ChatModel, last: torch.Tensor, tokens: Sequence[int]
) -> torch.Tensor:
    """Refusal scores [B] of the answers' first tokens, from hidden states [B, D]."""
    logits = OutputHead.of(model.model).logits(last.contiguous())
    return refusal_scores(torch.log_softmax(logits, dim=-1), tokens)
