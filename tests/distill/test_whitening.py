"""Steps in whitened inputs, against the change of variables written out."""

from __future__ import annotations

import pytest
import torch

from safesteer import ranks
from safesteer.config import LoraSettings, TrainSettings
from safesteer.distill.lora import with_lora
from safesteer.distill.train import train
from safesteer.distill.whitening import inverse_root, step_whitened, whiten
from safesteer.errors import InputError
from safesteer.teacher import Teacher

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


def test_a_factor_without_gradient_stays(tmp_path):
    a, b = torch.ones(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    optimizer = torch.optim.AdamW([a, b], lr=0.1)
    step_whitened(optimizer, {a: torch.eye(2), b: torch.eye(2)})
    b.grad = torch.ones(1, 2)
    optimizer.step()
    assert torch.equal(a, torch.ones(1, 2)) and not torch.equal(b, torch.ones(1, 2))


def test_every_adapter_is_measured_on_what_its_layer_reads(new_chat_model):
    """The moments of the first block's queries, taken by hand, and the start of their adapter."""
    model = new_chat_model()
    settings = TrainSettings(
        lora=LoraSettings(rank=2, alpha=4, target_modules=["q_proj", "v_proj"])
    )
    plain = with_lora(model.model, settings, 0)
    start = {name: p.detach().clone() for name, p in plain.named_parameters() if "lora_A" in name}
    student = with_lora(plain.unload(), settings, 0)
    found = whiten(model, student, HARMLESS, 0.1, seed=0)
    assert found.keys() == start.keys()
    after = dict(student.named_parameters())
    for name, w in found.items():
        torch.testing.assert_close(after[name], start[name] @ w)
    again = whiten(model, with_lora(student.unload(), settings, 0), HARMLESS, 0.1, seed=0)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_whitening_moves_harmless_text_less(new_chat_model, tmp_path):
    """What the adapters read of harmless inputs after the same updates, whitened and plain."""
    read = {}
    for whitening in (None, 0.01):
        model = new_chat_model()
        lora = {"rank": 4, "alpha": 8, "target_modules": ["q_proj"], "whitening": whitening}
        settings = TrainSettings(
            lora=lora, updates=4, prompts_per_update=4, samples_per_prompt=1, anchor_share=0.5,
            learning_rate=1e-2, max_completion_tokens=4,
        )  # fmt: skip
        harmful = [[{"role": "user", "content": f"How do I break law {n}"}] for n in range(8)]
        student = train(
            model, Teacher(context=({"role": "system", "content": "Refuse."},)), [1, 2, 3], harmful,
            HARMLESS, settings, folder=tmp_path / str(whitening),
        )  # fmt: skip
        energies = []

        def keep(module, inputs, output, energies=energies):  # type: ignore[no-untyped-def]
            energies.append(output.float().square().mean() / inputs[0].float().square().mean())

        hooks = [
            module.register_forward_hook(keep)
            for name, module in student.named_modules()
            if name.endswith("lora_A.default")
        ]
        for messages in HARMLESS:
            student(torch.tensor([model.chat.ids(messages)]))
        for hook in hooks:
            hook.remove()
        read[whitening] = torch.stack(energies).mean().item()
    assert read[0.01] < 0.5 * read[None]


def test_it_says_what_it_needs(new_chat_model, tmp_path, monkeypatch):
    settings = TrainSettings(lora=LoraSettings(whitening=0.1), updates=1)
    harmful = [[{"role": "user", "content": "How do I break the law"}]]
    teacher = Teacher(context=({"role": "system", "content": "Refuse."},))
    with pytest.raises(InputError, match=r"whitening needs harmless prompts.*train\.anchors"):
        train(new_chat_model(), teacher, [1, 2], harmful, settings=settings, folder=tmp_path)
    monkeypatch.setattr(ranks, "layout", lambda: "fsdp")
    with pytest.raises(InputError, match="whole adapters in every process, and fsdp spreads"):
        train(new_chat_model(), teacher, [1, 2], harmful, HARMLESS, settings, folder=tmp_path)
