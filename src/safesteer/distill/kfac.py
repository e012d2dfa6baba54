"""K-FAC preconditioning of LoRA updates on harmless text.

A LoRA adapter adds B A x to the output of its layer, with x [d] the layer's input, A [r, d] and
B [e, r]. The optimizer takes its steps in A' and B', where A = A' W, B = V B' and

    W = s (C / mean + damping * I)^(-1/2)    [d, d]

C holds the second moments of x over anchor prompts and the base's greedy answers, mean is the mean
of its eigenvalues, and s gives W the norm of I. V [e, e] is made likewise of the gradient of log p
at the layer's output, p being the probability of a token drawn from the model at each position of
an answer. So a step changes least what harmless answers depend on most, and the larger the damping,
the closer it is to a plain step. The model holds, saves and merges A and B themselves.

Source: C and its counterpart are K-FAC's approximation of the Fisher information (Martens and
Grosse 2015, arXiv 1503.05671); in its metric, half the squared length of a small change of the
weights is the KL divergence it causes on harmless text. Null-space methods project the same
directions out instead of weighing them (Adam-NSCL, arXiv 2103.07113; AlphaSteer, arXiv 2506.07022).
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


def measure_kfac(
    model: ChatModel,
    student: Any,
    anchors: Sequence[Sequence[Message]],
    damping: float,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Compute the preconditioner of a fresh student on anchor prompts.

    Args:
        model: the model that answers the prompts.
        student: a PEFT model around `model`, not trained yet.
        anchors: chat messages of harmless prompts; at most PROMPTS different ones are used.
        damping: added to the eigenvalues, as a multiple of their mean.
        seed: draws the prompts, and the tokens whose gradients are taken.

    Returns:
        W [d, d] for every linear factor A and V [e, e] for every B, float32, by the factor's name
        in `student`; none for layers that the prompts never reach.

    Raises:
        SafeSteerError: the second moments are not finite.
    """
    different = list({json.dumps(messages): messages for messages in anchors}.values())
    chosen = random.Random(seed).sample(different, min(PROMPTS, len(different)))
    with sound_attention():
        moments = _second_moments(model, student, chosen, seed)
    preconditioner = {}
    while moments:  # each is as large as the matrix that replaces it
        name, moment = moments.popitem()
        if not moment.isfinite().all():
            raise SafeSteerError(
                f"the K-FAC statistics of {name} are not finite: the activations or gradients on"
                " harmless answers overflow. Try: model.dtype=float32, or"
                " train.lora.kfac_damping=null"
            )
        if moment.trace() > 0:
            preconditioner[name] = inverse_root(moment, damping)
    return preconditioner


def inverse_root(moment: torch.Tensor, damping: float) -> torch.Tensor:
    """W = s (C / mean + damping * I)^(-1/2) [d, d] of second moments C [d, d] at any scale.

    It has the Frobenius norm of the identity, and the type of `moment`.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    scale = (values.clamp(min=0) / values.mean() + damping).rsqrt()
    scale = scale / scale.square().mean().sqrt()
    return ((vectors * scale) @ vectors.T).to(moment)


@torch.no_grad()
def start_preconditioned(student: Any, preconditioner: Mapping[str, torch.Tensor]) -> None:
    """Set A = A' W and B = V B', with the fresh A and B of `student` as A' and B'."""
    factors = dict(student.named_parameters())
    for name, matrix in preconditioner.items():
        factors[name].copy_(_apply(matrix, name, factors[name]))


def step_preconditioned(
    optimizer: torch.optim.Optimizer,
    factors: Mapping[str, torch.Tensor],
    preconditioner: Mapping[str, torch.Tensor],
) -> None:
    """Make `optimizer` step in A' and B' instead of A and B.

    By the chain rule the gradient of A' is that of A times W, and a step of A' moves A by itself
    times W, so A' is never stored; likewise V for B. Gradients are clipped before, as those of A
    and B. Factors without a preconditioner take plain steps; there must be no weight decay.
    """
    starts: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def before(*_: Any) -> None:
        for name, matrix in preconditioner.items():
            factor = factors[name]
            if factor.grad is not None:
                starts[name] = factor.detach().clone()
                factor.grad = _apply(matrix, name, factor.grad)

    @torch.no_grad()
    def after(*_: Any) -> None:
        for name, start in starts.items():
            step = _apply(preconditioner[name], name, factors[name] - start)
            factors[name].copy_(start + step)
        starts.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _apply(matrix: torch.Tensor, name: str, factor: torch.Tensor) -> torch.Tensor:
    """A [r, d] times W [d, d], or V [e, e] times B [e, r]."""
    return matrix @ factor if ".lora_B." in name else factor @ matrix


def _second_moments(
    model: ChatModel, student: Any, anchors: Sequence[Sequence[Message]], seed: int
) -> dict[str, torch.Tensor]:
    """Sums of x x^T [d, d] by the names of A, and of g g^T [e, e] by those of B.

    They run over the tokens of prompts and greedy answers: x is the input of an adapted layer, g
    the gradient at its output of the sum of log p over the positions of the answer.
    """
    prompts = [model.chat.ids(messages) for messages in anchors]
    answers = generate(
        model.model, model.chat.tokenizer, prompts, Decoding(ANSWER_TOKENS), batch_size=64
    )
    sums: dict[str, torch.Tensor] = {}
    outputs: list[tuple[str, torch.Tensor]] = []  # of the current prompt

    def add(name: str, rows: torch.Tensor) -> None:
        rows = rows.detach().reshape(-1, rows.shape[-1]).float()
        sums[name] = sums.get(name, 0) + rows.T @ rows

    def recorder(layer: str, adapter: str) -> Callable[..., None]:
        def record(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            add(f"{layer}.lora_A.{adapter}.weight", inputs[0])
            outputs.append((f"{layer}.lora_B.{adapter}.weight", output))

        return record

    head, sampler = OutputHead.of(student), torch.Generator().manual_seed(seed)
    with ExitStack() as hooks, torch.enable_grad():
        for layer, module in student.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            for adapter, factor in module.lora_A.items():
                if isinstance(factor, torch.nn.Linear):
                    hook = module.register_forward_hook(  # type: ignore[attr-defined]
                        recorder(layer, adapter)
                    )
                    hooks.callback(hook.remove)
        for prompt, answer in zip(prompts, answers, strict=True):
            (states,) = completion_states(
                student, [prompt], [answer], model.tokenizer.pad_token_id, run_last=True
            )
            log_p = torch.log_softmax(head.logits(states), dim=-1)
            token = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=sampler)
            log_likelihood = log_p.gather(-1, token.to(log_p.device)).sum()
            gradients = torch.autograd.grad(
                log_likelihood, [output for _, output in outputs], allow_unused=True
            )
            for (name, _), gradient in zip(outputs, gradients, strict=True):
                if gradient is not None:
                    add(name, gradient)
            outputs.clear()
    return sums
