"""Adapters that learn least in what harmless text is made of.

A LoRA adapter reads the input x of its layer as A x, A [r, d]. With C the second moments of x over
anchor prompts and the model's own answers to them, steps are taken in A' where A = A' W and

    W = s (C / mean + floor * I)^(-1/2)    mean: of the eigenvalues of C; s: W has the norm of I

so that a step moves least what is read along the directions that harmless text is full of, and
most along those that it leaves empty. Null-space methods cut the former off (Adam-NSCL, arXiv
2103.07113; for steering, AlphaSteer, arXiv 2506.07022); here they are weighed. A itself is what the
model holds, saves and merges: W shows only in how A starts and moves.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from safesteer.models.chat import Message
from safesteer.models.generate import generate
from safesteer.models.load import ChatModel

PROMPTS = 128
ANSWER_TOKENS = 24


def input_whitening(
    model: ChatModel,
    student: Any,
    anchors: Sequence[Sequence[Message]],
    floor: float,
    seed: int,
) -> dict[str, torch.Tensor]:
    """W [d, d], float32, of every linear factor A of a fresh student around `model`, by A's name.

    Factors whose layers the prompts never reach are left out. The prompts are a sample of at most
    PROMPTS different ones, drawn by `seed`.
    """
    different = list({json.dumps(messages): messages for messages in anchors}.values())
    chosen = random.Random(seed).sample(different, min(PROMPTS, len(different)))
    moments = _second_moments(model, student, chosen)
    found = {}
    while moments:  # each is as large as what it becomes
        name, moment = moments.popitem()
        if moment.trace() > 0:
            found[name] = inverse_root(moment, floor)
    return found


def inverse_root(moment: torch.Tensor, floor: float) -> torch.Tensor:
    """W of second moments [d, d], which may be of any scale; of their type, on their device."""
    values, vectors = torch.linalg.eigh(moment.double().cpu())
    scale = (values.clamp(min=0) / values.mean() + floor).rsqrt()
    scale = scale / scale.square().mean().sqrt()
    return ((vectors * scale) @ vectors.T).to(moment)


@torch.no_grad()
def start_whitened(student: Any, whitening: Mapping[str, torch.Tensor]) -> None:
    """Put every factor A of a fresh student at A W, where A' is what A was."""
    factors = dict(student.named_parameters())
    for name, weight in whitening.items():
        factors[name].copy_(factors[name] @ weight)


def step_whitened(
    optimizer: torch.optim.Optimizer, factors: Mapping[torch.Tensor, torch.Tensor]
) -> None:
    """Let `optimizer` move each factor A [r, d] as it would move A' = A W^-1, for W [d, d].

    By the chain rule the gradient of A' is that of A times W, and a step of A' moves A by itself
    times W, so that A' need not be kept. The optimizer must not decay the factors. What clips
    gradients before the step sees that of A.
    """
    starts: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def enter(*_: Any) -> None:
        for factor, weight in factors.items():
            if factor.grad is not None:
                starts[factor] = factor.detach().clone()
                factor.grad = factor.grad @ weight

    @torch.no_grad()
    def leave(*_: Any) -> None:
        for factor, start in starts.items():
            factor.copy_(start + (factor - start) @ factors[factor])
        starts.clear()

    optimizer.register_step_pre_hook(enter)
    optimizer.register_step_post_hook(leave)


@torch.no_grad()
def _second_moments(
    model: ChatModel, student: Any, anchors: Sequence[Sequence[Message]]
) -> dict[str, torch.Tensor]:
    """Sums [d, d] of x x^T over the tokens of prompts and greedy answers, by the name of A."""
    prompts = [model.chat.ids(messages) for messages in anchors]
    answers = generate(
        model.model, model.chat.tokenizer, prompts, max_new_tokens=ANSWER_TOKENS, batch_size=64
    )
    sums: dict[str, torch.Tensor] = {}

    def adds(name: str) -> Callable[..., None]:
        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums.get(name, 0) + x.T @ x

        return add

    with ExitStack() as hooks:
        for name, module in student.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            for adapter, factor in module.lora_A.items():
                if isinstance(factor, torch.nn.Linear):
                    hook = adds(f"{name}.lora_A.{adapter}.weight")
                    hooks.callback(module.get_base_layer().register_forward_hook(hook).remove)
        device = model.model.device
        for prompt, answer in zip(prompts, answers, strict=True):
            model.model(torch.tensor([prompt + answer], device=device), use_cache=False)
    return sums
