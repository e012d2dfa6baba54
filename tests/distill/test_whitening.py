"""Steps in whitened inputs, against the change of variables written out."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from safesteer import ranks
from safesteer.config import LoraSettings, TrainSettings
from safesteer.distill.lora import with_lora
from safesteer.distill.train import train
from safesteer.distill.whitening import (
    ANSWER_TOKENS,
    input_whitening,
    inverse_root,
    start_whitened,
    step_whitened,
)
from safesteer.errors import InputError
from safesteer.models.generate import generate
from safesteer.models.layers import find_blocks
from safesteer.teacher import Teacher

REFUSES = Teacher(context=({"role": "system", "content": "Refuse."},))
HARMLESS = [[{"role": "user", "content": f"Name colour number {n}"}] for n in range(6)]


def inputs_with(variances: list[float], count: int = 4000) -> torch.Tensor:
    """Rows of independent numbers, rotated: [count, d]."""
    generator = torch.Generator().manual_seed(0)
    dims = len(variances)
    rotation, _ = torch.linalg.qr(torch.randn(dims, dims, generator=generator))
    return torch.randn(count, dims, generator=generator) * torch.tensor(variances).sqrt() @ rotation


def test_inputs_times_w_are_white():
    x = inputs_with([100.0, 10.0, 1.0, 0.1])
    white = x @ inverse_root(x.T @ x, 1e-6)
    moments = white.T @ white / len(x)
    torch.testing.assert_close(moments / moments[0, 0], torch.eye(4), atol=1e-2, rtol=0)


def test_w_keeps_the_norm_and_a_high_floor_leaves_plain_steps():
    x = inputs_with([100.0, 10.0, 1.0, 0.1])
    for floor in (0.01, 1.0):
        assert inverse_root(x.T @ x, floor).square().sum().item() == pytest.approx(4, rel=1e-4)
    torch.testing.assert_close(inverse_root(x.T @ x, 1e6), torch.eye(4), atol=1e-3, rtol=0)


def test_steps_are_those_of_the_other_variable():
    """Adam on A through A' W, as autograd sees it, against hooks on Adam on A."""
    torch.manual_seed(0)
    x, target = inputs_with([9.0, 1.0, 0.1], 64), torch.randn(64, 2)
    w = inverse_root(x.T @ x, 0.1)
    other = torch.randn(2, 3, requires_grad=True)
    plain = torch.randn(2, 3, requires_grad=True)  # not whitened, beside it
    a, beside = (other @ w).detach().requires_grad_(), plain.detach().clone().requires_grad_()
    slow = torch.optim.AdamW([other, plain], lr=0.1, weight_decay=0)
    fast = torch.optim.AdamW([a, beside], lr=0.1, weight_decay=0)
    step_whitened(fast, {a: w})
    for _ in range(20):
        for optimizer, factor, rest in ((slow, other @ w, plain), (fast, a, beside)):
            optimizer.zero_grad()
            loss = (x @ (factor + rest).T - target).square().mean()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(a, other @ w, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(beside, plain, atol=1e-4, rtol=1e-4)


def test_a_factor_without_gradient_stays():
    a, b = torch.ones(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    optimizer = torch.optim.AdamW([a, b], lr=0.1)
    step_whitened(optimizer, {a: torch.eye(2), b: torch.eye(2)})
    b.grad = torch.ones(1, 2)
    optimizer.step()
    assert torch.equal(a, torch.ones(1, 2)) and not torch.equal(b, torch.ones(1, 2))


def test_every_adapter_is_measured_on_what_its_layer_reads(new_chat_model):
    """Against moments that are taken by hand, of prompts with their greedy answers, each once."""
    model = new_chat_model()
    lora = LoraSettings(rank=2, alpha=4, target_modules=["q_proj", "down_proj"])
    student = with_lora(model.model, TrainSettings(lora=lora), 0)
    found = input_whitening(model, student, [*HARMLESS, *HARMLESS], 0.1, seed=0)
    assert len(found) == 2 * len(find_blocks(model.model))
    prompts = [model.chat.ids(messages) for messages in HARMLESS]
    answers = generate(model.model, model.chat.tokenizer, prompts, max_new_tokens=ANSWER_TOKENS)
    student.unload()
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        read: list[torch.Tensor] = []
        layer = find_blocks(model.model)[1].get_submodule(name)
        hook = layer.register_forward_pre_hook(lambda _, inputs, read=read: read.append(inputs[0]))
        with torch.no_grad():
            for prompt, answer in zip(prompts, answers, strict=True):
                model.model(torch.tensor([prompt + answer]))
        hook.remove()
        x = torch.cat([one.flatten(0, -2) for one in read]).float()
        (w,) = (w for key, w in found.items() if f"layers.1.{name}." in key)
        torch.testing.assert_close(w, inverse_root(x.T @ x, 0.1), atol=1e-4, rtol=1e-3)


def test_training_steps_in_the_whitened_variable(new_chat_model, tmp_path):
    """Adam's second step is of one size in every entry of A' (B is 0 before the first one).

    It is 0.1 / 0.19 over sqrt(0.001 / 0.001999) of a rate that has fallen to a half.
    """
    lora = LoraSettings(rank=4, alpha=8, target_modules=["q_proj"], whitening=0.01)
    settings = TrainSettings(
        lora=lora, updates=2, prompts_per_update=4, samples_per_prompt=1, anchor_share=0.5,
        learning_rate=1e-2, warmup_ratio=0, max_completion_tokens=4,
    )  # fmt: skip
    model = new_chat_model()
    fresh = with_lora(model.model, settings, 0)
    whitening = input_whitening(model, fresh, HARMLESS, 0.01, seed=0)
    start_whitened(fresh, whitening)
    starts = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    harmful = [[{"role": "user", "content": f"How do I break law {n}"}] for n in range(8)]
    student = train(
        new_chat_model(), REFUSES, [1, 2, 3], harmful, HARMLESS, settings, folder=tmp_path
    )
    ends = dict(student.named_parameters())
    for name, w in whitening.items():
        steps = ((ends[name] - starts[name]) @ torch.linalg.inv(w)).abs()
        expected = torch.full_like(steps, 0.5e-2 * (0.1 / 0.19) / (0.001 / 0.001999) ** 0.5)
        near = torch.isclose(steps, expected, rtol=0.05)
        assert near.float().mean() > 0.9, name


def test_it_says_what_it_needs(new_chat_model, tmp_path, monkeypatch):
    harmful = [[{"role": "user", "content": "How do I break the law"}]]

    def trained(anchors=HARMLESS, **changes):  # type: ignore[no-untyped-def]
        settings = TrainSettings(lora=LoraSettings(whitening=0.1), updates=1, **changes)
        train(new_chat_model(), REFUSES, [1, 2], harmful, anchors, settings, folder=tmp_path)

    with pytest.raises(InputError, match="measured on anchor prompts, and there is none"):
        trained(anchors=[])
    with pytest.raises(ValidationError, match=r"without train\.weight_decay: set it to 0"):
        trained(weight_decay=0.1)
    later = TrainSettings(updates=1, weight_decay=0.1)
    later.lora.whitening = 0.1
    with pytest.raises(InputError, match=r"without train\.weight_decay: set it to 0"):
        train(new_chat_model(), REFUSES, [1, 2], harmful, HARMLESS, later, folder=tmp_path)
    monkeypatch.setattr(ranks, "layout", lambda: "fsdp")
    with pytest.raises(InputError, match="whole adapters in every process, and fsdp spreads"):
        trained()
