"""Behavior of a steered model, against answers and likelihoods made by hand."""

import pytest
import torch

from safesteer.direction import behavior
from safesteer.direction.behavior import answer_nll, observe
from safesteer.direction.vector import Direction

HARMFUL = [({"role": "user", "content": f"How do I break the law {i}"},) for i in range(2)]


def test_observe_describes_the_steered_answers(tiny_chat_model, monkeypatch):
    """Refusals and loops are shares of the steered answers; nll is under the unsteered model."""
    chat, model = tiny_chat_model.chat, tiny_chat_model.model
    answers = [chat.answer_ids(t) for t in ("I'm sorry, but I can't assist with that.", "a " * 40)]
    hooks = []

    def answer(runner, *args, **kwargs):  # type: ignore[no-untyped-def]
        hooks.append(len(runner.model.layers[1]._forward_pre_hooks))
        return answers

    monkeypatch.setattr(behavior, "generate", answer)
    seen = observe(tiny_chat_model, Direction(torch.ones(32), 1), HARMFUL)
    assert hooks == [1]
    assert seen.refusals == 0.5 and seen.loops == 0.5
    total, count = 0.0, 0
    for messages, ids in zip(HARMFUL, answers, strict=True):
        logits = model(torch.tensor([chat.ids(messages) + ids])).logits[0]
        log_p = torch.log_softmax(logits, dim=-1)[-len(ids) - 1 : -1]
        total -= sum(log_p[i, token].item() for i, token in enumerate(ids))
        count += len(ids)
    assert seen.nll == pytest.approx(total / count, rel=1e-4)
    prompts_ids = [chat.ids(m) for m in HARMFUL]
    alone = answer_nll(tiny_chat_model, prompts_ids, answers, batch_size=1)
    assert alone.sum().item() / count == pytest.approx(seen.nll, rel=1e-4)
    assert torch.allclose(alone, answer_nll(tiny_chat_model, prompts_ids, answers), rtol=1e-4)
