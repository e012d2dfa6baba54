"""Adapters that learn least in what harmless text is made of.

A LoRA adapter reads the input x of its layer as A x, A [r, d]. With C the second moments of x over
harmless prompts and the model's own answers to them, steps are taken in A' where A = A' W and

    W = (C / mean + floor * I)^(-1/2)      mean: of the eigenvalues of C; W then has the norm of I

so that a step moves least what is read along the directions that harmless text is full of, and
most along those that it leaves empty. Null-space methods cut the former off (Adam-NSCL, arXiv
2103.07113; for steering, AlphaSteer, arXiv 2506.07022); here they are weighed. A itself is what the
model holds, saves and merges: W shows only in how A starts and moves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from safesteer.errors import InputError
from safesteer.models.chat import Message
from safesteer.models.generate import generate
from safesteer.models.load import ChatModel

PROMPTS = 128
ANSWER_TOKENS = 24


def whiten(
    model: ChatModel,
    student: Any,
    harmless: Sequence[Sequence[Message]],
    floor: float,
    seed: int,
) -> dict[str, torch.Tensor]:
    """W [d, d] of every linear factor A of a fresh student around `model`, by the name of A.

    Leaves every A at A W, where its steps begin. Factors of layers that the prompts never reach
    are left out. The prompts are a sample of at most PROMPTS, drawn by `seed`.

    Raises InputError without prompts.
    """
    if not harmless:
        raise InputError("train.lora.whitening needs harmless prompts to measure: train.anchors")
    moments = _second_moments(model, student, harmless, seed)
    found = {}
    for name, (factor, moment) in moments.items():
        weight = inverse_root(moment, floor)
        found[name] = weight
        with torch.no_grad():
            factor.copy_(factor @ weight)
    return found


def inverse_root(moment: torch.Tensor, floor: float) -> torch.Tensor:
    """W of second moments [d, d], float32 on their device."""
    values, vectors = torch.linalg.eigh(moment.double().cpu())
    scale = (values.clamp(min=0) / values.mean() + floor).rsqrt()
    scale = scale / scale.square().mean().sqrt()
    return ((vectors * scale) @ vectors.T).to(moment)


def step_whitened(
    optimizer: torch.optim.Optimizer, factors: Mapping[torch.Tensor, torch.Tensor]
) -> None:
    """Let `optimizer` move each factor A [r, d] as it would move A' = A W^-1, for W [d, d].

    By the chain rule the gradient of A' is that of A times W, and a step of A' moves A by itself
    times W, so that A' need not be kept. Weight decay, which is of A, is multiplied by W as well.
    """
    before: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def enter(*_: Any) -> None:
        for factor, weight in factors.items():
            if factor.grad is not None:
                before[factor] = factor.detach().clone()
                factor.grad = factor.grad @ weight

    @torch.no_grad()
    def leave(*_: Any) -> None:
        for factor, start in before.items():
            factor.copy_(start + (factor - start) @ factors[factor])
        before.clear()

    optimizer.register_step_pre_hook(enter)
    optimizer.register_step_post_hook(leave)


@torch.no_grad()
def _second_moments(
    model: ChatModel, student: Any, harmless: Sequence[Sequence[Message]], seed: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{name of A: (A, sum of x x^T over the tokens of prompts and answers)}."""
    chosen = random.Random(seed).sample(list(harmless), min(PROMPTS, len(harmless)))
    prompts = [model.chat.ids(messages) for messages in chosen]
    answers = generate(
        model.model, model.chat.tokenizer, prompts, max_new_tokens=ANSWER_TOKENS, batch_size=64
    )
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def adds(name: str, factor: torch.Tensor) -> Callable[..., None]:
        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            before = found[name][1] if name in found else 0
            found[name] = (factor, before + x.T @ x)

        return add

    with ExitStack() as hooks:
        for name, module in student.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            for adapter, factor in module.lora_A.items():
                if isinstance(factor, torch.nn.Linear):
                    hook = adds(f"{name}.lora_A.{adapter}.weight", factor.weight)
                    hooks.callback(module.get_base_layer().register_forward_hook(hook).remove)
        device = model.model.device
        for prompt, answer in zip(prompts, answers, strict=True):
            model.model(torch.tensor([prompt + answer], device=device), use_cache=False)
    return found
