"""Passes of the teacher: any size, and blocks that it shares with the student."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny_training import (
    lora_from,
    make_teacher,
    prompts,
    run,
    slow_loss,
)

from safesteer.distill import train as train_module
from safesteer.distill.teacher_pass import ForwardPasses
from safesteer.distill.trainer import SafeSteerTrainer

pytestmark = pytest.mark.usefixtures("no_warmup")


@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_the_teachers_passes_may_be_of_any_size(
    tokens, tiny_chat_model, recorded, tmp_path, monkeypatch
):
    """Cutting the teacher's reading into passes changes no loss."""
    monkeypatch.setattr(train_module, "TEACHER_BATCH_TOKENS", tokens)
    base = copy.deepcopy(tiny_chat_model.model)
    _, metrics = run(tiny_chat_model, tmp_path, max_steps=1)
    expected = slow_loss(recorded[0], base, tiny_chat_model.chat, "generalized")
    assert metrics[0]["loss"] == pytest.approx(expected["loss"], rel=2e-4)


@pytest.mark.parametrize("first_layer, shared", [("steered", 2), (1, 1), (3, 2), (0, 0)])
def test_teacher_and_student_share_what_is_below_adapters_and_direction(
    first_layer, shared, tiny_chat_model, recorded, gradients, tmp_path, monkeypatch
):
    """The lowest blocks run once for both, with the losses and gradients of two whole passes."""
    base = copy.deepcopy(tiny_chat_model.model)
    teacher = replace(make_teacher(), context=())
    settings = {"anchor_tokens": "all", "lora": lora_from(first_layer)}
    trainers = []
    original = SafeSteerTrainer._compute_loss
    passes = [0, 0]

    def watch(self, student, *args):  # type: ignore[no-untyped-def]
        trainers.append(self)
        layers = student.get_base_model().model.layers
        counts = [
            layer.self_attn.register_forward_hook(lambda *_, place=place: count(place))
            for place, layer in ((0, layers[0]), (1, layers[-1]))
        ]
        try:
            return original(self, student, *args)
        finally:
            for handle in counts:
                handle.remove()

    def count(place: int) -> None:
        passes[place] += 1

    monkeypatch.setattr(SafeSteerTrainer, "_compute_loss", watch)
    _, metrics = run(tiny_chat_model, tmp_path / "shared", teacher, **settings)
    assert trainers[0].shared_blocks == shared
    if shared:
        assert passes[0] * 2 == passes[1] > 0  # the first block once, the last for each
    for update, line in zip(recorded, metrics, strict=True):
        expected = slow_loss(update, base, tiny_chat_model.chat, "generalized", "all", context=())
        for key, value in expected.items():
            assert line[key] == pytest.approx(value, rel=2e-4, abs=1e-6), key
    ours = list(gradients)
    gradients.clear()
    monkeypatch.setattr(ForwardPasses, "shared_blocks", lambda self, student: 0)
    tiny_chat_model.model = base
    run(tiny_chat_model, tmp_path / "apart", teacher, **settings)
    assert len(ours) == len(gradients) == 2
    for mine, plain in zip(ours[0] + ours[1], gradients[0] + gradients[1], strict=True):
        assert torch.allclose(mine, plain, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("change", ["context", "checkpointing", "full"])
def test_nothing_is_shared_where_it_would_be_wrong(change, tiny_chat_model, tmp_path, monkeypatch):
    """A teacher that reads something else, blocks that run twice, weights that all move."""
    shared: list[int] = []
    original = SafeSteerTrainer._compute_loss

    def watch(self, *args):  # type: ignore[no-untyped-def]
        shared.append(self.shared_blocks)
        return original(self, *args)

    monkeypatch.setattr(SafeSteerTrainer, "_compute_loss", watch)
    teacher = make_teacher() if change == "context" else replace(make_teacher(), context=())
    run(
        tiny_chat_model,
        tmp_path,
        teacher,
        max_steps=1,
        lora=lora_from(2),
        gradient_checkpointing=change == "checkpointing",
        method="full" if change == "full" else "lora",
    )
    assert shared == [0]


@pytest.mark.parametrize("context", [True, False])
def test_wrongly_refused_prompts_are_taught_by_the_base_steered_the_other_way(
    context, tiny_chat_model, recorded, tmp_path
):
    """On the whole vocabulary, at a temperature of 1, also where blocks are shared."""
    base = copy.deepcopy(tiny_chat_model.model)
    teacher = replace(make_teacher(), repair=0.5, temperature=0.7)
    if not context:
        teacher = replace(teacher, context=())
    changes = {"repaired": prompts("harmless")[:3], "anchor_weight": 2.0, "max_steps": 3}
    _, metrics = run(tiny_chat_model, tmp_path, teacher, lora=lora_from(2), **changes)
    strengths = {row["strength"] for update in recorded for row in update["rows"]}
    assert strengths == {1.0, 0.0, -0.5}
    for update, line in zip(recorded, metrics, strict=True):
        expected = slow_loss(
            update,
            base,
            tiny_chat_model.chat,
            "generalized",
            temperature=0.7,
            context=teacher.context,
            anchor_weight=2.0,
        )
        for key, value in expected.items():
            assert line[key] == pytest.approx(value, rel=2e-4, abs=1e-6), key
    rates = ("refusal_rate", "anchor_refusal_rate", "repaired_refusal_rate")
    assert all(any(line.get(rate) is not None for line in metrics) for rate in rates)
