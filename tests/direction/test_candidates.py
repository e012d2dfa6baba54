"""Scores of candidate directions, and the rules that reject them."""

from __future__ import annotations

import math

import pytest
import torch

from safesteer.config import DirectionSettings
from safesteer.direction import candidates as module
from safesteer.direction.candidates import (
    Candidate,
    next_token_log_probs,
    refusal_scores,
    score_candidates,
)
from safesteer.models.refusal_tokens import refusal_first_tokens
from safesteer.models.steering import ablate, steer
from safesteer.teacher import Direction

TEXTS = ["Hi", "How far is the moon?", "Name a colour and explain it at some length."]
PROMPTS = [({"role": "user", "content": text},) for text in TEXTS]


def candidate(layer: int = 1, scale: float = 1.0) -> Candidate:
    return Candidate(Direction(torch.linspace(-1, 2, 32) * scale, layer, 1.0, "test", -1))


def test_refusal_score_is_the_log_odds_of_the_refusal_tokens():
    """log P(R) - log(1 - P(R)), zero where refusing is as likely as not, finite at the ends."""
    p = torch.tensor([[0.1, 0.2, 0.7], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    scores = refusal_scores(p.log(), [0, 1]).tolist()
    assert scores[0] == pytest.approx(math.log(0.3) - math.log(0.7), rel=1e-5)
    assert scores[1] == pytest.approx(0, abs=1e-6)
    assert scores[2] < -20 and scores[3] > 20 and all(map(math.isfinite, scores))


def test_refusal_tokens_are_the_first_tokens_of_refusals(tiny_chat_model):
    """Each is the first token of some refusal as this tokenizer writes it, once."""
    chat = tiny_chat_model.chat
    tokens = refusal_first_tokens(chat)
    assert tokens == sorted(set(tokens)) and len(tokens) >= 3
    assert chat.answer_ids("Sorry,")[0] in tokens and chat.answer_ids("I cannot")[0] in tokens
    assert (
        chat.answer_ids("Sure")[0] not in tokens
        or chat.answer_ids("Sure")[0] == (chat.answer_ids("Sorry,")[0])
    )


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_next_token_log_probs_are_the_models(batch_size, tiny_chat_model):
    """The distribution at the end of each prompt, whatever the batch, also under a hook."""
    model = tiny_chat_model.model
    direction = torch.linspace(-1, 2, 32)
    for hook in (None, "steer"):
        found = next_token_log_probs(
            tiny_chat_model,
            PROMPTS,
            steer(model, 2, direction) if hook else None,
            batch_size=batch_size,
        )
        for row, messages in zip(found, PROMPTS, strict=True):
            ids = torch.tensor([tiny_chat_model.chat.ids(messages)])
            if hook:
                with steer(model, 2, direction):
                    logits = model(ids).logits[0, -1]
            else:
                logits = model(ids).logits[0, -1]
            assert torch.allclose(row, torch.log_softmax(logits, dim=-1), atol=1e-4)


def test_scores_are_ablation_addition_and_kl(tiny_chat_model):
    """Ablation on the harmful prompts, addition and KL(base || ablated) on the harmless ones."""
    harmful, harmless, refusing = PROMPTS[:1], PROMPTS[1:], [5, 40]
    scored = candidate(layer=2)
    d = scored.direction
    score_candidates(
        tiny_chat_model,
        [scored],
        harmful,
        harmless,
        refusing,
        DirectionSettings(max_kl=99, min_addition_score=-99),
    )

    def run(prompts, hook=None):  # type: ignore[no-untyped-def]
        return next_token_log_probs(tiny_chat_model, prompts, hook)

    model = tiny_chat_model.model
    without = refusal_scores(run(harmful, ablate(model, d.vector)), refusing).mean().item()
    added = refusal_scores(run(harmless, steer(model, 2, d.vector)), refusing).mean().item()
    base, ablated = run(harmless), run(harmless, ablate(model, d.vector))
    kl = torch.nn.functional.kl_div(ablated, base, log_target=True, reduction="batchmean").item()
    assert scored.ablation == pytest.approx(without, rel=1e-4)
    assert scored.addition == pytest.approx(added, rel=1e-4)
    assert scored.kl == pytest.approx(kl, rel=1e-3) and kl > 0


@pytest.fixture
def made_up_scores(monkeypatch, tiny_chat_model):  # type: ignore[no-untyped-def]
    """Lets a test say what addition score and KL every candidate gets."""

    def use(addition: float, kl: float) -> None:
        base = torch.log_softmax(torch.zeros(1, 8), dim=-1)
        # One bit of probability moved so far that the KL is the one wanted.
        low, high = 0.0, 40.0
        for _ in range(80):
            middle = (low + high) / 2
            other = torch.log_softmax(torch.tensor([[middle] + [0.0] * 7]).double(), dim=-1)
            found = (base.exp() * (base - other)).sum().item()
            low, high = (middle, high) if found < kl else (low, middle)
        ablated = other.float()
        calls = {"n": 0}

        def fake(model, prompts, hook=None, **kwargs):  # type: ignore[no-untyped-def]
            calls["n"] += 1
            if hook is None:
                return base
            return ablated

        monkeypatch.setattr(module, "next_token_log_probs", fake)
        monkeypatch.setattr(
            module, "refusal_scores", lambda log_probs, tokens: torch.tensor([addition])
        )

    return use


@pytest.mark.parametrize(
    ("layer", "addition", "kl", "reason"),
    [
        (1, 0.5, 0.05, ""),
        (1, 0.0, 0.05, ""),
        (1, -0.1, 0.05, "does not induce refusal"),
        (1, 0.5, 0.2, "changes harmless answers"),
        (2, 0.5, 0.05, ""),
        (3, 0.5, 0.05, "among the last 20% of layers"),
    ],
)
def test_thresholds(layer, addition, kl, reason, made_up_scores, tiny_chat_model):
    """Each published threshold rejects what is beyond it, and says why; layer 3 of 4 goes."""
    made_up_scores(addition, kl)
    scored = candidate(layer)
    score_candidates(tiny_chat_model, [scored], PROMPTS, PROMPTS, [1], DirectionSettings())
    assert reason in scored.rejected and bool(reason) == bool(scored.rejected)
    if layer < 3 and addition >= 0:
        assert scored.kl == pytest.approx(kl, rel=1e-2)
    else:
        assert scored.kl is None


def test_a_rejected_candidate_costs_no_further_pass(tiny_chat_model, monkeypatch):
    """The same candidates pass, with the same scores, as when each is given every score."""
    model, refusing = tiny_chat_model.model, [5, 40]
    torch.manual_seed(0)
    made = [
        Candidate(Direction(torch.randn(32) * scale, layer, 1.0, "test", -1))
        for layer in range(4)
        for scale in (0.2, 1.0, 4.0)
    ]
    passes = []

    def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
        passes.append(1)
        return next_token_log_probs(*args, **kwargs)

    monkeypatch.setattr(module, "next_token_log_probs", counted)

    def run(prompts, hook=None):  # type: ignore[no-untyped-def]
        return next_token_log_probs(tiny_chat_model, prompts, hook)

    def addition(c: Candidate) -> float:
        hook = steer(model, c.direction.layer, c.direction.vector)
        return refusal_scores(run(PROMPTS, hook), refusing).mean().item()

    def kl(c: Candidate) -> float:
        base, ablated = run(PROMPTS), run(PROMPTS, ablate(model, c.direction.vector))
        return (base.exp() * (base - ablated)).sum(-1).mean().item()

    early = [c for c in made if c.direction.layer < 3]
    least = sorted(map(addition, early))[3]  # some pass each test and some do not
    induce = [c for c in early if addition(c) >= least]
    most = sorted(map(kl, induce))[len(induce) // 2]
    harmless = [c for c in induce if kl(c) <= most]
    bounds = DirectionSettings(max_kl=most * 1.0001, min_addition_score=least - 1e-4)
    score_candidates(tiny_chat_model, made, PROMPTS[:2], PROMPTS, refusing, bounds)
    assert [c for c in made if not c.rejected] == harmless and 0 < len(harmless) < len(induce) < 9
    for c in harmless:
        without = run(PROMPTS[:2], ablate(model, c.direction.vector))
        expected = refusal_scores(without, refusing).mean().item()
        assert c.ablation == pytest.approx(expected, rel=1e-4)
    assert all(c.ablation is None for c in made if c.rejected)
    # Addition for all but the last layer, KL for those that induce, and once for the base.
    assert len(passes) == 9 + len(induce) + 1 + len(harmless)


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_direction_of_nothing_is_not_scored(scale, tiny_chat_model):
    """Equal means, or means that are no numbers, give no candidate."""
    scored = candidate(scale=scale)
    score_candidates(tiny_chat_model, [scored], PROMPTS, PROMPTS, [1], DirectionSettings())
    assert scored.rejected == "the two means do not differ"
    assert scored.ablation is None
