"""The loss of a model that thinks: at the positions of its answers and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from thinking_templates import OPENED, make_thinking
from tiny import plain_training

from safesteer.direction.vector import Direction
from safesteer.distill import trainer
from safesteer.distill.plan import TrainingPrompts
from safesteer.distill.train import train
from safesteer.distill.trainer import SafeSteerTrainer
from safesteer.models.chat import ChatRenderer
from safesteer.teacher import Teacher

PROMPTS = [({"role": "user", "content": f"Harmful request {i}"},) for i in range(4)]
WRITTEN = ["Hm, why not.</think>\n\nSure, here is how.", "Hm.</think>I'm sorry.", "Hm, hm, hm."]


@pytest.fixture
def updates(new_chat_model, monkeypatch, tmp_path):  # type: ignore[no-untyped-def]
    """Trains on given completions; returns (student's hidden states, loss, metrics) per update."""

    def run(written: list[str], **changes: Any) -> tuple[list[dict[str, Any]], ChatRenderer]:
        tokenizer = new_chat_model().tokenizer
        make_thinking(tokenizer, OPENED)
        model = new_chat_model(vocab_size=len(tokenizer))
        model.chat = ChatRenderer(tokenizer, {"enable_thinking": True})
        ids = [model.chat.answer_ids(text) for text in written]
        monkeypatch.setattr(
            trainer,
            "generate",
            lambda *given, **named: [ids[i % len(ids)] for i in range(len(given[2]))],
        )
        seen: list[dict[str, Any]] = []
        original = SafeSteerTrainer._compute_loss

        def compute(self, student, inputs, count):  # type: ignore[no-untyped-def]
            result = original(self, student, inputs, count)
            seen.append({**inputs, "loss": result[0].detach(), "count": int(result[2])})
            return result

        monkeypatch.setattr(SafeSteerTrainer, "_compute_loss", compute)
        settings = {
            "max_steps": 1,
            "prompts_per_step": len(written),
            "num_generations": 1,
            "max_completion_length": 64,
            "lora": {"r": 2},
            **changes,
        }
        torch.manual_seed(0)
        teacher = Teacher(Direction(torch.randn(32), 2))
        train(
            model,
            teacher,
            [10, 40, 77],
            TrainingPrompts(PROMPTS),
            plain_training(**settings),
            output=tmp_path,
        )
        return seen, model.chat

    return run


def test_the_loss_looks_at_answers_alone(updates):
    """Every position after the closing tag, none before it, none of what was not ended."""
    ((seen,), chat) = updates(WRITTEN)
    for ids, mask, text in zip(seen["completion_ids"], seen["answer_mask"], WRITTEN, strict=True):
        answer = text.partition("</think>")[2]
        assert chat.decode(ids[mask].tolist()) == answer
    assert seen["count"] == int(seen["answer_mask"].sum()) > 0
    assert seen["loss"] != 0


def test_without_any_answer_nothing_is_learned(updates):
    ((seen,), _) = updates(["Hm, hm.", "Hm."])
    assert seen["count"] == 0 and seen["loss"] == 0


def test_a_short_rollout_is_the_start_of_the_answer(updates):
    """Rollouts are not cut in the thoughts: the loss sees the first tokens of the answers."""
    ((seen,), chat) = updates(
        WRITTEN, short_rollout_length=3, advanced={"short_rollout_share": 1.0}
    )
    counts = seen["answer_mask"].sum(-1).tolist()
    assert counts == [3, 3, 0]
    first = seen["completion_ids"][0][seen["answer_mask"][0]].tolist()
    assert chat.decode(first) == chat.decode(chat.answer_ids("\n\nSure, here is how.")[:3])
