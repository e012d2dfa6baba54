"""How far a trained model is from its base on harmless prompts, token by token.

The base answers harmless prompts; at every token of its answers both models' next-token
distributions are compared. No judge and no benchmark is involved: this is the most sensitive sign
that something other than safety has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

from safesteer.evaluate.statistics import mean_interval
from safesteer.models.base_weights import base_weights
from safesteer.models.batch_size import rows_that_fit
from safesteer.models.chat import Message
from safesteer.models.generate import Decoding, Progress, generate
from safesteer.models.hidden_states import completion_states, hidden_states
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.oom import in_batches
from safesteer.models.quantization import quantization_of
from safesteer.models.upcast import in_float32

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drift:
    """How far a model is from its base, prompt by prompt.

    Attributes:
        pairs: (next-token agreement, KL(base || student) in nats), means over a prompt's answer.
        dtype: in which both models computed them, e.g. "float32".
    """

    pairs: list[tuple[float, float]]
    dtype: str


def measure_drift(
    base: ChatModel,
    student: Any,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Next-token agreement and KL(base || student) on the base's answers to harmless prompts.

    `student` is a PEFT model around ``base.model``, or a separate model with all weights trained.
    Both read the answers in float32 where they can (`models.float32`), so that what is measured is
    the change of the weights and not that of the rounding.
    Returns two entries of eval/aligned.json, which say in which type ("dtype"); intervals are over
    prompts, not tokens.
    """
    drift = drift_by_prompt(
        base,
        student,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    agreement, divergence = [same for same, _ in drift.pairs], [kl for _, kl in drift.pairs]

    def entry(metric: str, values: list[float], *, share: bool = False) -> dict[str, Any]:
        return {
            "metric": metric,
            "value": sum(values) / len(values),
            "ci95": list(mean_interval(values, share=share)),
            "n": len(values),
            "judge": None,
            "kind": "capability",
            "dtype": drift.dtype,
        }

    return {
        "agreement": entry("next_token_agreement", agreement, share=True),
        "divergence": entry("kl_base_aligned", divergence),
    }


@torch.no_grad()
def drift_by_prompt(
    base: ChatModel,
    student: Any,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Drift:
    """What `measure_drift` takes means of."""
    rendered = [base.chat.ids(messages) for messages in prompts]
    with base_weights(base.model if student is None else student):
        answers = generate(
            base.model,
            base.tokenizer,
            rendered,
            Decoding(max_new_tokens),
            batch_size=batch_size,
            progress=progress,
        )
    longest = max((p + a for p, a in zip(rendered, answers, strict=True)), key=len)
    dtype = _dtype_of_passes(base.model, student, longest)
    exact = dtype == torch.float32
    batch_size = batch_size or rows_that_fit(base.model, len(longest), dtype.itemsize)
    base_head, head = OutputHead.of(base.model), OutputHead.of(student)
    pad_id = base.tokenizer.pad_token_id

    def read(part: Sequence[int]) -> list[tuple[float, float]]:
        batch = [rendered[row] for row in part], [answers[row] for row in part], pad_id
        with ExitStack() as widened:
            for model in (base.model, student) if exact else ():
                widened.enter_context(in_float32(model))
            with base_weights(student):
                before = completion_states(base.model, *batch, run_last=True)
            after = completion_states(student, *batch, run_last=True)
        found = []
        for states_0, states_s in zip(before, after, strict=True):
            log_0 = base_head.every_log_prob(states_0)
            log_s = head.every_log_prob(states_s)
            same = log_0.argmax(-1) == log_s.argmax(-1)
            kl = (log_0.exp() * (log_0 - log_s)).sum(-1).mean()
            found.append((same.float().mean().item(), kl.item()))
        return found

    parts = in_batches(range(len(rendered)), batch_size, read)
    return Drift([pair for part in parts for pair in part], str(dtype).removeprefix("torch."))


def _dtype_of_passes(base: Any, student: Any, longest: list[int]) -> torch.dtype:
    """float32 if both models can read the longest answer in it, else the type that they have.

    There are kernels that take 16 bits alone, and memory that does not hold a block in float32.
    """
    if base.dtype == torch.float32 and quantization_of(base) != "8bit":
        return base.dtype
    ids = torch.tensor([longest], device=base.device)
    try:
        with ExitStack() as stack:
            for model in (base, student):
                if (dtype := stack.enter_context(in_float32(model))) != torch.float32:
                    return dtype
            mask = torch.ones_like(ids)
            for model in (base, student):
                if (dtype := hidden_states(model, ids, mask).dtype) != torch.float32:
                    return dtype
        return torch.float32
    except Exception as error:
        _log.debug("a pass in float32", exc_info=True)
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    clear_device_cache(garbage_collection=True)
    _log.warning(
        "agreement with the base is measured in %s, of which rounding alone takes a part;"
        " in float32 the model fails: %s",
        str(base.dtype).removeprefix("torch."),
        said,
    )
    return base.dtype
