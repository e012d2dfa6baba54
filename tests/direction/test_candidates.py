"""Scores of candidate directions, and the rules that reject them."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from safesteer.config.settings import DirectionSettings
from safesteer.direction import candidates as module
from safesteer.direction.candidates import Candidate, refusal_scores, score_candidates
from safesteer.direction.vector import Direction
from safesteer.models.layers import find_blocks
from safesteer.models.steering import ablate, steer

TEXTS = ["Hi", "How far is the moon?", "Name a colour and explain it at some length."]
PROMPTS = [({"role": "user", "content": text},) for text in TEXTS]
REFUSING = [5, 40]


def candidate(layer: int = 1, scale: float = 1.0) -> Candidate:
    return Candidate(Direction(torch.linspace(-1, 2, 32) * scale, layer, 1.0, "test", -1))


def test_refusal_score_is_the_log_odds_of_the_refusal_tokens():
    """log P(R) - log(1 - P(R)), zero where refusing is as likely as not, finite at the ends."""
    p = torch.tensor([[0.1, 0.2, 0.7], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    scores = refusal_scores(p.log(), [0, 1]).tolist()
    assert scores[0] == pytest.approx(math.log(0.3) - math.log(0.7), rel=1e-5)
    assert scores[1] == pytest.approx(0, abs=1e-6)
    assert scores[2] < -20 and scores[3] > 20 and all(map(math.isfinite, scores))


@torch.no_grad()
def next_token(chat_model, prompts, hook=None):  # type: ignore[no-untyped-def]
    """Log-probabilities [N, V] of the first token of the answer, from every prompt alone."""
    with hook or nullcontext():
        rows = [chat_model.model(torch.tensor([chat_model.chat.ids(m)])).logits for m in prompts]
    return torch.log_softmax(torch.stack([row[0, -1] for row in rows]), dim=-1)


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
        DirectionSettings(advanced={"max_kl": 99, "min_addition_score": -99}),
    )

    run = partial(next_token, tiny_chat_model)
    model = tiny_chat_model.model
    without = refusal_scores(run(harmful, ablate(model, d.vector)), refusing).mean().item()
    added = refusal_scores(run(harmless, steer(model, 2, d.vector)), refusing).mean().item()
    base, ablated = run(harmless), run(harmless, ablate(model, d.vector))
    kl = torch.nn.functional.kl_div(ablated, base, log_target=True, reduction="batchmean").item()
    assert scored.ablation == pytest.approx(without, rel=1e-4)
    assert scored.addition == pytest.approx(added, rel=1e-4)
    assert scored.kl == pytest.approx(kl, rel=1e-3) and kl > 0


@pytest.fixture
def table(tiny_chat_model):  # type: ignore[no-untyped-def]
    """Twelve candidates with the scores that each has: [(candidate, addition, kl, ablation)]."""
    model = tiny_chat_model.model
    run = partial(next_token, tiny_chat_model)
    base = run(PROMPTS)
    rows = []
    torch.manual_seed(0)
    for layer in range(4):
        for scale in (0.2, 1.0, 4.0):
            c = Candidate(Direction(torch.randn(32) * scale, layer, 1.0, "test", -1))
            vector = c.direction.vector
            added = run(PROMPTS, steer(model, layer, vector))
            ablated = run(PROMPTS, ablate(model, vector))
            without = run(PROMPTS[:2], ablate(model, vector))
            rows.append(
                (
                    c,
                    refusal_scores(added, REFUSING).mean().item(),
                    (base.exp() * (base - ablated)).sum(-1).mean().item(),
                    refusal_scores(without, REFUSING).mean().item(),
                )
            )
    return rows


def score(chat_model, made, **bounds):  # type: ignore[no-untyped-def]
    settings = DirectionSettings(advanced=bounds)
    score_candidates(chat_model, made, PROMPTS[:2], PROMPTS, REFUSING, settings)


def test_each_threshold_rejects_what_is_beyond_it(table, tiny_chat_model):
    """And says why; what lies at a bound stays, and layer 3 of 4 is never scored."""
    c, addition, kl, _ = table[1]
    near = 1e-4
    for bounds, reason in (
        ({"min_addition_score": addition - near, "max_kl": kl + near}, ""),
        ({"min_addition_score": addition + near, "max_kl": kl + near}, "does not induce refusal"),
        ({"min_addition_score": addition - near, "max_kl": kl - near}, "changes harmless answers"),
    ):
        scored = Candidate(c.direction)
        score(tiny_chat_model, [scored], **bounds)
        assert reason in scored.rejected and bool(reason) == bool(scored.rejected)
        assert scored.addition == pytest.approx(addition, abs=near / 2)
        assert (scored.kl is None) == ("induce" in reason)
        assert (scored.ablation is None) == bool(reason)
    late = candidate(3)
    score(tiny_chat_model, [late], min_addition_score=-99, max_kl=99)
    assert "among the last 20% of layers" in late.rejected
    assert late.addition is None and late.kl is None and late.ablation is None


@pytest.mark.parametrize("together", [1, 2, 8])
def test_a_rejected_candidate_costs_no_further_pass(together, table, tiny_chat_model, monkeypatch):
    """The same candidates pass, with the same scores, as when each is given every score."""
    monkeypatch.setattr(module, "_TOGETHER", together)
    early = table[:9]  # layers 0, 1 and 2 of 4
    least = sorted(addition for _, addition, _, _ in early)[3]  # some pass each test, some do not
    induce = [row for row in early if row[1] >= least]
    most = sorted(kl for _, _, kl, _ in induce)[len(induce) // 2]
    harmless = [row for row in induce if row[2] <= most]
    assert 0 < len(harmless) < len(induce) < 9
    made = [c for c, *_ in table]
    score(tiny_chat_model, made, max_kl=most + 1e-4, min_addition_score=least - 1e-4)
    for row, c in zip(table, made, strict=True):
        scored = sum(any(row is other for other in rows) for rows in (early, induce, harmless))
        scores = [c.addition, c.kl, c.ablation]
        assert scores[:scored] == pytest.approx(list(row[1:][:scored]), abs=1e-4)
        assert scores[scored:] == [None] * (3 - scored)
        assert bool(c.rejected) == (scored < 3)


def test_additions_run_only_the_blocks_from_their_layer_on(table, tiny_chat_model):
    """One pass over all blocks leaves what the additions at every layer begin with."""
    ran = [0] * 4
    for index, block in enumerate(find_blocks(tiny_chat_model.model)):

        def count(module, args, output, index=index):  # type: ignore[no-untyped-def]
            ran[index] += len(output)

        block.mlp.register_forward_hook(count)
    score(tiny_chat_model, [c for c, *_ in table], min_addition_score=99)
    # Prompts through each block: three for the base, three for each of the three candidates at
    # layers up to the block's; and one in each trial whether the model can begin at layers 1 and 2.
    assert ran == [3 + 9 + 1, 3 + 18 + 2, 3 + 27 + 3, 3 + 27 + 3]


def test_progress_counts_finished_candidates(table, tiny_chat_model):
    """It never goes back, and ends at all of them."""
    seen: list[int] = []
    made = [c for c, *_ in table]
    settings = DirectionSettings(advanced={"min_addition_score": -99, "max_kl": 99})
    score_candidates(
        tiny_chat_model,
        made,
        PROMPTS,
        PROMPTS,
        REFUSING,
        settings,
        progress=lambda done, total: seen.append(done),
    )
    assert seen == sorted(seen) and seen[0] == 3 and seen[-1] == 12


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_direction_of_nothing_is_not_scored(scale, tiny_chat_model):
    """Equal means, or means that are no numbers, give no candidate."""
    scored = candidate(scale=scale)
    score_candidates(tiny_chat_model, [scored], PROMPTS, PROMPTS, [1], DirectionSettings())
    assert scored.rejected == "the two means do not differ"
    assert scored.ablation is None
