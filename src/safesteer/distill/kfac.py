"""Adapters that learn least in what harmless text is made of.

A LoRA adapter reads the input x of its layer as A x, A [r, d], and adds B A x to its output, B
[e, r]. With C the second moments of x over anchor prompts and the model's own answers to them,
steps are taken in A' where A = A' W and

    W = s (C / mean + floor * I)^(-1/2)    mean: of the eigenvalues of C; s: W has the norm of I

so that a step moves least what is read along the directions that harmless text is full of, and
most along those that it leaves empty. Null-space methods cut the former off (Adam-NSCL, arXiv
2103.07113; for steering, AlphaSteer, arXiv 2506.07022); here they are weighed.

Likewise B = V B', with V made of the second moments of the gradient of log p at the layer's output,
p being the probability of a token drawn from the model at each position of those answers: steps
move least what harmless answers depend on most. Together they are K-FAC's approximation of the
Fisher information of harmless text (Martens and Grosse 2015, arXiv 1503.05671): in its metric half
the squared length of a small change of the weights is the divergence from the base that it makes.

A and B themselves are what the model holds, saves and merges: W and V show only in how A starts
and how both move.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from safesteer.distill.attention import sound_attention
from safesteer.errors import SafeSteerError
from safesteer.models.chat import Message
from safesteer.models.generate import Decoding, generate
from safesteer.models.hidden_states import completion_states
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel

PROMPTS = 128
ANSWER_TOKENS = 24


def measure_whitening(
    model: ChatModel,
    student: Any,
    anchors: Sequence[Sequence[Message]],
    floor: float,
    seed: int,
) -> dict[str, torch.Tensor]:
    """W [d, d] of every linear factor A and V [e, e] of every B of a fresh student, by their names.

    `student` is a PEFT model around `model`; the matrices are float32. Factors whose layers the
    prompts never reach are left out. The prompts are a sample of at most PROMPTS different ones,
    drawn by `seed`, and so are the tokens that gradients are taken of.

    Raises SafeSteerError where moments are not finite.
    """
    different = list({json.dumps(messages): messages for messages in anchors}.values())
    chosen = random.Random(seed).sample(different, min(PROMPTS, len(different)))
    with sound_attention():
        moments = _second_moments(model, student, chosen, seed)
    found = {}
    while moments:  # each is as large as what it becomes
        name, moment = moments.popitem()
        if not moment.isfinite().all():
            raise SafeSteerError(
                f"the second moments behind {name} are not finite: the model's activations or its"
                " gradients on harmless answers are not; what may do: model.dtype=float32, or"
                " train.lora.kfac_damping=null"
            )
        if moment.trace() > 0:
            found[name] = inverse_root(moment, floor)
    return found


def inverse_root(moment: torch.Tensor, floor: float) -> torch.Tensor:
    """W of second moments [d, d], which may be of any scale; of their type, on their device."""
    values, vectors = torch.linalg.eigh(moment.double())
    scale = (values.clamp(min=0) / values.mean() + floor).rsqrt()
    scale = scale / scale.square().mean().sqrt()
    return ((vectors * scale) @ vectors.T).to(moment)


@torch.no_grad()
def start_whitened(student: Any, whitening: Mapping[str, torch.Tensor]) -> None:
    """Put every factor of a fresh student where A' and B' are what A and B were."""
    factors = dict(student.named_parameters())
    for name, weight in whitening.items():
        factors[name].copy_(_whitened(name, factors[name], weight))


def step_whitened(
    optimizer: torch.optim.Optimizer,
    factors: Mapping[str, torch.Tensor],
    whitening: Mapping[str, torch.Tensor],
) -> None:
    """Let `optimizer` move each of the `factors` that `whitening` names as it would move A' or B'.

    By the chain rule the gradient of A' is that of A times W, and a step of A' moves A by itself
    times W, so that A' need not be kept; likewise V times that of B. The optimizer must not decay
    the factors. What clips gradients before the step sees those of A and B.
    """
    starts: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def enter(*_: Any) -> None:
        for name, weight in whitening.items():
            factor = factors[name]
            if factor.grad is not None:
                starts[name] = factor.detach().clone()
                factor.grad = _whitened(name, factor.grad, weight)

    @torch.no_grad()
    def leave(*_: Any) -> None:
        for name, start in starts.items():
            step = _whitened(name, factors[name] - start, whitening[name])
            factors[name].copy_(start + step)
        starts.clear()

    optimizer.register_step_pre_hook(enter)
    optimizer.register_step_post_hook(leave)


def _whitened(name: str, factor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A [r, d] times W [d, d], or V [e, e] times B [e, r]."""
    return weight @ factor if ".lora_B." in name else factor @ weight


def _second_moments(
    model: ChatModel, student: Any, anchors: Sequence[Sequence[Message]], seed: int
) -> dict[str, torch.Tensor]:
    """Sums of x x^T [d, d] by the names of A, and of g g^T [e, e] by those of B.

    Over the tokens of prompts and the base's greedy answers. x is the input of an adapted layer, g
    the gradient at its output of the sum of log p over the positions of the answer.
    """
    prompts = [model.chat.ids(messages) for messages in anchors]
    answers = generate(
        model.model, model.chat.tokenizer, prompts, Decoding(ANSWER_TOKENS), batch_size=64
    )
    sums: dict[str, torch.Tensor] = {}
    outputs: list[tuple[str, torch.Tensor]] = []  # of the prompt that is being read

    def add(name: str, rows: torch.Tensor) -> None:
        rows = rows.detach().reshape(-1, rows.shape[-1]).float()
        sums[name] = sums.get(name, 0) + rows.T @ rows

    def sees(layer: str, adapter: str) -> Callable[..., None]:
        def see(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            add(f"{layer}.lora_A.{adapter}.weight", inputs[0])
            outputs.append((f"{layer}.lora_B.{adapter}.weight", output))

        return see

    head, drawn = OutputHead.of(student), torch.Generator().manual_seed(seed)
    with ExitStack() as hooks, torch.enable_grad():
        for layer, module in student.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            for adapter, factor in module.lora_A.items():
                if isinstance(factor, torch.nn.Linear):
                    hook = module.register_forward_hook(  # type: ignore[attr-defined]
                        sees(layer, adapter)
                    )
                    hooks.callback(hook.remove)
        for prompt, answer in zip(prompts, answers, strict=True):
            (states,) = completion_states(
                student, [prompt], [answer], model.tokenizer.pad_token_id, run_last=True
            )
            log_p = torch.log_softmax(head.logits(states), dim=-1)
            token = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=drawn)
            loss = log_p.gather(-1, token.to(log_p.device)).sum()
            reached = [y for _, y in outputs]
            gradients = torch.autograd.grad(loss, reached, allow_unused=True)
            for (name, _), gradient in zip(outputs, gradients, strict=True):
                if gradient is not None:
                    add(name, gradient)
            outputs.clear()
    return sums
