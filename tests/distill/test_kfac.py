"""K-FAC preconditioned steps, against the change of variables written out."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import plain_training

from safesteer import distributed
from safesteer.config.settings import LoraSettings, TrainSettings
from safesteer.distill import config
from safesteer.distill.kfac import (
    ANSWER_TOKENS,
    inverse_root,
    load_or_measure,
    measure_kfac,
    start_preconditioned,
    step_preconditioned,
)
from safesteer.distill.lora import with_lora
from safesteer.distill.plan import TrainingPrompts
from safesteer.distill.train import TrainingOutput, train
from safesteer.errors import InputError, SafeSteerError
from safesteer.models.generate import Decoding, generate
from safesteer.models.layers import find_blocks
from safesteer.runs.own_files import check_own_files
from safesteer.teacher import Teacher

REFUSES = Teacher(context=({"role": "system", "content": "Refuse."},))
HARMLESS = [[{"role": "user", "content": f"Name color number {n}"}] for n in range(6)]


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


def test_w_keeps_the_norm_and_high_damping_leaves_plain_steps():
    x = inputs_with([100.0, 10.0, 1.0, 0.1])
    for damping in (0.01, 1.0):
        assert inverse_root(x.T @ x, damping).square().sum().item() == pytest.approx(4, rel=1e-4)
    torch.testing.assert_close(inverse_root(x.T @ x, 1e6), torch.eye(4), atol=1e-3, rtol=0)


def test_steps_are_those_of_the_other_variables():
    """Adam on A and B through A' W and V B', as autograd sees it, against hooks on A and B."""
    torch.manual_seed(0)
    x, target = inputs_with([9.0, 1.0, 0.1], 64), torch.randn(64, 4)
    w, v = inverse_root(x.T @ x, 0.1), inverse_root(target.T @ target, 0.01)
    primes = {"a": torch.randn(2, 3), "b": torch.randn(4, 2), "plain": torch.randn(2, 3)}
    slow = {name: start.clone().requires_grad_() for name, start in primes.items()}
    names = {"a": "q.lora_A.default.weight", "b": "q.lora_B.default.weight", "plain": "beside"}
    starts = {"a": primes["a"] @ w, "b": v @ primes["b"], "plain": primes["plain"]}
    fast = {names[key]: start.clone().requires_grad_() for key, start in starts.items()}
    of_slow = torch.optim.AdamW(slow.values(), lr=0.1, weight_decay=0)
    of_fast = torch.optim.AdamW(fast.values(), lr=0.1, weight_decay=0)
    step_preconditioned(of_fast, fast, {names["a"]: w, names["b"]: v})
    for _ in range(20):
        through = {"a": slow["a"] @ w, "b": v @ slow["b"], "plain": slow["plain"]}
        as_it_is = {key: fast[name] for key, name in names.items()}
        for optimizer, held in ((of_slow, through), (of_fast, as_it_is)):
            optimizer.zero_grad()
            loss = (x @ (held["a"] + held["plain"]).T @ held["b"].T - target).square().mean()
            loss.backward()
            optimizer.step()
        through = {"a": slow["a"] @ w, "b": v @ slow["b"], "plain": slow["plain"]}
        for key, expected in through.items():
            torch.testing.assert_close(fast[names[key]], expected, atol=1e-4, rtol=1e-4)


def test_a_factor_without_gradient_stays():
    factors = {name: torch.ones(1, 2, requires_grad=True) for name in ("a", "b")}
    optimizer = torch.optim.AdamW(factors.values(), lr=0.1)
    step_preconditioned(optimizer, factors, dict.fromkeys(factors, torch.eye(2)))
    factors["b"].grad = torch.ones(1, 2)
    optimizer.step()
    assert torch.equal(factors["a"], torch.ones(1, 2))
    assert not torch.equal(factors["b"], torch.ones(1, 2))


def test_every_adapter_is_measured_on_what_its_layer_reads_and_adds_to(new_chat_model):
    """Against moments that are taken by hand, of prompts with their greedy answers, each once."""
    model = new_chat_model()
    lora = LoraSettings(r=2, alpha=4, target_modules=["q_proj", "down_proj"])
    student = with_lora(model.model, TrainSettings(lora=lora), 0)
    found = measure_kfac(model, student, [*HARMLESS, *HARMLESS], 0.1, seed=0)
    assert len(found) == 4 * len(find_blocks(model.model))
    assert all(p.grad is None for p in student.parameters())
    student.unload()
    chosen = random.Random(0).sample(HARMLESS, len(HARMLESS))
    prompts = [model.chat.ids(messages) for messages in chosen]
    answers = generate(model.model, model.chat.tokenizer, prompts, Decoding(ANSWER_TOKENS))
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        layer = find_blocks(model.model)[1].get_submodule(name)
        layer.weight.requires_grad_(True)
        drawn = torch.Generator().manual_seed(0)
        read: list[torch.Tensor] = []
        added: list[torch.Tensor] = []

        def keep(_, inputs, output, read=read, added=added):  # type: ignore[no-untyped-def]
            read.append(inputs[0].detach())
            output.register_hook(added.append)

        hook = layer.register_forward_hook(keep)
        texts = sorted(zip(prompts, answers, strict=True), key=lambda text: len(text[0] + text[1]))
        for prompt, answer in texts:  # one by one, which needs no padding
            ids = torch.tensor([prompt + answer])
            logits = model.model(ids).logits[0, len(prompt) - 1 : -1]
            token = torch.multinomial(logits.softmax(-1), 1, generator=drawn)[:, 0]
            torch.nn.functional.cross_entropy(logits, token, reduction="sum").backward()
        hook.remove()
        for factor, rows in (("lora_A", read), ("lora_B", added)):
            x = torch.cat([one.flatten(0, -2) for one in rows]).float()
            (w,) = (w for key, w in found.items() if f"layers.1.{name}.{factor}" in key)
            torch.testing.assert_close(w, inverse_root(x.T @ x, 0.1), atol=1e-4, rtol=1e-3)


def test_a_moment_that_is_not_finite_is_no_layer_that_was_never_reached(new_chat_model):
    """Left out, its factors would be trained in plain steps without a word."""
    model = new_chat_model()
    lora = LoraSettings(r=2, alpha=4, target_modules=["q_proj", "down_proj"])
    student = with_lora(model.model, TrainSettings(lora=lora), 0)
    spoiled = find_blocks(model.model)[1].mlp.down_proj
    spoiled.register_full_backward_hook(lambda _, down, up: tuple(g * torch.inf for g in down))
    with pytest.raises(SafeSteerError, match=r"K-FAC statistics of \S*lora_B\S* are not finite"):
        measure_kfac(model, student, HARMLESS, 0.1, seed=0)


def test_kept_matrices_are_read_for_the_same_measurement_alone(tmp_path):
    path, made = tmp_path / "kfac.safetensors", []

    def measure() -> dict[str, torch.Tensor]:
        made.append(1)
        shared = torch.eye(3)
        return {"q.lora_A": shared, "v.lora_A": shared, "q.lora_B": torch.full((2, 2), 1 / 3)}

    first = load_or_measure(path, ["model", 0.1], measure)
    again = load_or_measure(path, ["model", 0.1], measure)
    assert len(made) == 1
    assert again["q.lora_A"] is again["v.lora_A"]
    assert all(torch.equal(again[name], first[name]) for name in first)
    load_or_measure(path, ["model", 0.2], measure)
    assert len(made) == 2
    data = path.read_bytes()
    for damaged in (data[:-9], data[:-1] + bytes([data[-1] ^ 1])):  # cut, and one bit
        path.write_bytes(damaged)
        assert load_or_measure(path, ["model", 0.2], measure).keys() == first.keys()
    assert len(made) == 4


def test_a_stopped_training_does_not_measure_again(new_chat_model, tmp_path, monkeypatch):
    """Stopped before its first checkpoint; at the end nothing large is left."""
    settings = plain_training(
        max_steps=2,
        prompts_per_step=2,
        anchor_share=0.5,
        max_completion_length=2,
        lora={"r": 2, "alpha": 4, "kfac_damping": 0.1},
    )
    prompts = TrainingPrompts(HARMLESS, HARMLESS)
    shown: list[tuple[str, int, int]] = []

    class Stopped(Exception):
        pass

    def stop(*_):  # type: ignore[no-untyped-def]
        raise Stopped

    tmp_path /= "train"

    def run(**follow):  # type: ignore[no-untyped-def]
        output = TrainingOutput(tmp_path, **follow)
        train(new_chat_model(), REFUSES, [1, 2], prompts, settings, output=output)

    with pytest.raises(Stopped):
        run(on_step=stop, on_progress=lambda *what: shown.append(what))
    assert shown[-1] == ("K-FAC statistics", 12, 12)
    check_own_files(tmp_path.parent, [], [tmp_path.name])  # the run resumes with them
    assert (tmp_path / "kfac").is_dir()
    monkeypatch.setattr("safesteer.distill.train.measure_kfac", stop)
    run()
    assert not (tmp_path / "kfac").exists()


def test_cudnn_has_no_part_in_what_is_measured(new_chat_model, monkeypatch):
    allowed = torch.backends.cuda.cudnn_sdp_enabled
    seen: list[bool] = []

    def answer(*named, **options):  # type: ignore[no-untyped-def]
        seen.append(allowed())
        return generate(*named, **options)

    monkeypatch.setattr("safesteer.distill.kfac.generate", answer)
    model = new_chat_model()
    student = with_lora(model.model, TrainSettings(), 0)
    measure_kfac(model, student, HARMLESS, 0.1, seed=0)
    assert (seen, allowed()) == ([False], True)


@pytest.mark.parametrize("updates, factor", [(1, "lora_B"), (2, "lora_A")])
def test_training_steps_in_the_preconditioned_variables(
    new_chat_model, tmp_path, updates, factor, monkeypatch
):
    """Adam's first step is of one size in every entry: of B' at once, of A' once B is not 0.

    Of B' it is the rate. Of A' it is the second update's, 0.1 / 0.19 over sqrt(0.001 / 0.001999) of
    a rate that has fallen to a half.
    """
    lora = {"r": 4, "alpha": 8, "target_modules": ["q_proj"], "kfac_damping": 0.01}
    monkeypatch.setattr(config, "WARMUP_RATIO", 0.0)
    settings = plain_training(
        lora=lora, max_steps=updates, prompts_per_step=4, num_generations=1, anchor_share=0.5,
        learning_rate=1e-2, max_completion_length=4,
    )  # fmt: skip
    model = new_chat_model()
    fresh = with_lora(model.model, settings, 0)
    preconditioner = measure_kfac(model, fresh, HARMLESS, 0.01, seed=0)
    start_preconditioned(fresh, preconditioner)
    starts = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    harmful = [[{"role": "user", "content": f"How do I break law {n}"}] for n in range(8)]
    student = train(
        new_chat_model(),
        REFUSES,
        [1, 2, 3],
        TrainingPrompts(harmful, HARMLESS),
        settings,
        output=tmp_path,
    )
    size = {1: 1e-2, 2: 0.5e-2 * (0.1 / 0.19) / (0.001 / 0.001999) ** 0.5}[updates]
    moved = {name: p - starts[name] for name, p in student.named_parameters() if factor in name}
    for name, move in moved.items():
        inverse = torch.linalg.inv(preconditioner[name])
        steps = (inverse @ move if factor == "lora_B" else move @ inverse).abs()
        near = torch.isclose(steps, torch.full_like(steps, size), rtol=0.05)
        assert near.float().mean() > 0.9, name
    assert moved


def test_it_says_what_it_needs(new_chat_model, tmp_path, monkeypatch):
    harmful = [[{"role": "user", "content": "How do I break the law"}]]

    def trained(anchors=HARMLESS, **changes):  # type: ignore[no-untyped-def]
        settings = plain_training(lora={"kfac_damping": 0.1}, max_steps=1, **changes)
        chosen = TrainingPrompts(harmful, anchors)
        train(new_chat_model(), REFUSES, [1, 2], chosen, settings, output=tmp_path)

    with pytest.raises(InputError, match="measured on anchor prompts, and none has"):
        trained(anchors=[])
    monkeypatch.setattr(distributed, "layout", lambda: "fsdp")
    with pytest.raises(InputError, match="whole adapters in every process, and fsdp splits"):
        trained()
