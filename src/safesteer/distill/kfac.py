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

import hashlib
import json
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from safesteer import distributed
from safesteer.distill.attention import sound_attention
from safesteer.errors import SafeSteerError, without_advice
from safesteer.events import Progress
from safesteer.files import write_error
from safesteer.models.chat import Message, pad_left
from safesteer.models.generate import Decoding, generate
from safesteer.models.hidden_states import positions
from safesteer.models.layers import backbone
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.oom import in_batches

_log = logging.getLogger(__name__)

PROMPTS = 128
ANSWER_TOKENS = 24
_BATCH = 16  # prompts in a pass


def measure_kfac(
    model: ChatModel,
    student: Any,
    anchors: Sequence[Sequence[Message]],
    damping: float,
    seed: int,
    *,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Compute the preconditioner of a fresh student on anchor prompts.

    Args:
        model: the model that answers the prompts.
        student: a PEFT model around `model`, not trained yet.
        anchors: chat messages of harmless prompts; at most PROMPTS different ones are used.
        damping: added to the eigenvalues, as a multiple of their mean.
        seed: draws the prompts, and the tokens whose gradients are taken.
        progress: called with the parts of the work that are done, and all parts.

    Returns:
        W [d, d] for every linear factor A and V [e, e] for every B, float32, by the factor's name
        in `student`; none for layers that the prompts never reach. Factors that read the same
        input share one tensor.

    Raises:
        SafeSteerError: the second moments are not finite.
    """
    different = list({json.dumps(messages): messages for messages in anchors}.values())
    chosen = random.Random(seed).sample(different, min(PROMPTS, len(different)))
    count = len(chosen)

    def report(done: int) -> None:  # half of the time is spent on the prompts
        if progress is not None:
            progress(done, 2 * count)

    with sound_attention():
        moments, sharing = _second_moments(model, student, chosen, seed, report)
    preconditioner: dict[str, torch.Tensor] = {}
    for done, (name, moment) in enumerate(moments.items()):
        if not moment.isfinite().all():
            raise SafeSteerError(
                f"the K-FAC statistics of {name} are not finite: the activations or gradients on"
                " harmless answers overflow. Try: model.dtype=float32, or"
                " train.lora.kfac_damping=null"
            )
        if moment.trace() > 0:
            moment.copy_(inverse_root(moment, damping))  # in place: both are large
            preconditioner |= dict.fromkeys([name, *sharing[name]], moment)
        report(count + count * (done + 1) // len(moments))
    return preconditioner


def load_or_measure(
    path: Path, of: Any, measure: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Read a preconditioner from a file that keeps it, or measure it and keep it there.

    Measuring can take as long as many steps, and a run may be stopped before its first checkpoint.

    Args:
        path: the file, which may not exist. A damaged one is measured again.
        of: JSON values that name all that `measure` depends on; kept for others it is not read.
        measure: calls `measure_kfac`.
    """
    key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
    with suppress(OSError, SafetensorError, ValueError, KeyError), safe_open(path, "pt") as file:
        known = file.metadata() or {}
        if known["of"] == key:
            names = json.loads(known["names"])
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _digest(kept) == known["sha256"]:
                return {name: kept[first] for name, first in names.items()}
    found = measure()
    if not distributed.is_main():  # the others have measured the same
        return found
    seen: dict[int, str] = {}
    names = {name: seen.setdefault(id(matrix), name) for name, matrix in found.items()}
    kept = {name: found[name].contiguous() for name in seen.values()}
    metadata = {"of": key, "names": json.dumps(names), "sha256": _digest(kept)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, path, metadata)  # makes no copy, unlike our own `save_tensors`
    except (OSError, SafetensorError) as error:
        _log.warning(
            "the K-FAC matrices are not kept: %s", without_advice(write_error(path, error))
        )
    return found


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].cpu().numpy().data)
    return digest.hexdigest()


def inverse_root(moment: torch.Tensor, damping: float) -> torch.Tensor:
    """W = s (C / mean + damping * I)^(-1/2) [d, d] of second moments C [d, d] at any scale.

    It has the Frobenius norm of the identity, and the type of `moment`.
    """
    values, vectors = torch.linalg.eigh(moment)
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


class _Batch(NamedTuple):
    """What a batch of texts adds to the moments."""

    real: torch.Tensor  # [B, T], False for padding
    inputs: dict[str, torch.Tensor]  # of the adapted layers, [B, T, d], by the names of A
    gradients: dict[str, torch.Tensor]  # at their outputs, [B, T, e], by the names of B


def _second_moments(
    model: ChatModel,
    student: Any,
    anchors: Sequence[Sequence[Message]],
    seed: int,
    report: Callable[[int], None],
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Sums of x x^T [d, d] by the names of A, and of g g^T [e, e] by those of B.

    They run over the tokens of prompts and greedy answers: x is the input of an adapted layer, g
    the gradient at its output of the sum of log p over the positions of the answer. The second
    result names, by the first A that reads an input, the others that read the same.
    """
    prompts = [model.chat.ids(messages) for messages in anchors]
    answers = generate(
        model.model, model.chat.tokenizer, prompts, Decoding(ANSWER_TOKENS), batch_size=64
    )
    sampler = torch.Generator().manual_seed(seed)
    sums: dict[str, torch.Tensor] = {}
    sharing: dict[str, list[str]] = defaultdict(list)

    def add(name: str, rows: torch.Tensor, real: torch.Tensor) -> None:
        rows = rows.detach().reshape(-1, rows.shape[-1])
        if len(rows) == real.numel():  # an expert gets a part of the rows, padding included
            rows = rows[real.flatten().to(rows.device)]
        rows = rows.float()
        sums[name] = sums.get(name, 0) + rows.T @ rows

    def measure(rows: Sequence[int]) -> _Batch:
        texts = [(prompts[row], answers[row]) for row in rows]
        return _measure(student, texts, model.tokenizer.pad_token_id, sampler)

    done = 0
    whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    for _, batch in in_batches(whole, _BATCH, measure, student.device):
        readers: dict[int, str] = {}
        for name, rows in batch.inputs.items():
            first = readers.setdefault(id(rows), name)
            if first == name:
                add(name, rows, batch.real)
            elif name not in sharing[first]:
                sharing[first].append(name)
        for name, rows in batch.gradients.items():
            add(name, rows, batch.real)
        done += len(batch.real)
        report(done)
    return sums, sharing


def _measure(
    student: Any,
    texts: Sequence[tuple[list[int], list[int]]],
    pad_id: int,
    sampler: torch.Generator,
) -> _Batch:
    """One pass, forward and backward, over prompts and their answers."""
    ids, mask = pad_left([prompt + answer for prompt, answer in texts], pad_id, student.device)
    head = OutputHead.of(student)
    with _recorded(student) as (inputs, outputs), torch.enable_grad():
        # Not `hidden_states`, since a prefix that rows share would sum up their gradients.
        hidden = backbone(student)(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
        ).last_hidden_state.to(ids.device)
        likelihoods = []
        for (_, answer), states in zip(texts, hidden, strict=True):
            log_p = torch.log_softmax(head.logits(states[-len(answer) - 1 : -1]), dim=-1)
            token = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=sampler)
            likelihoods.append(log_p.gather(-1, token.to(log_p.device)).sum())
        gradients = torch.autograd.grad(
            torch.stack(likelihoods).sum(), list(outputs.values()), allow_unused=True
        )
    found = zip(outputs, gradients, strict=True)
    return _Batch(mask.bool(), inputs, {name: each for name, each in found if each is not None})


@contextmanager
def _recorded(
    student: Any,
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Record the inputs and outputs of adapted layers, by the names of their A and B."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def recorder(factors: str, adapter: str):  # type: ignore[no-untyped-def]
        def record(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            inputs[f"{factors}.lora_A.{adapter}.weight"] = args[0]
            outputs[f"{factors}.lora_B.{adapter}.weight"] = output

        return record

    with ExitStack() as hooks:
        for layer, module in student.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            for adapter, factor in module.lora_A.items():
                if isinstance(factor, torch.nn.Linear):
                    hook = module.register_forward_hook(  # type: ignore[attr-defined]
                        recorder(layer, adapter)
                    )
                    hooks.callback(hook.remove)
        yield inputs, outputs
