"""Drift of a trained model from its base: next-token agreement and KL on harmless prompts.

The base answers the prompts, and both models' next-token distributions are compared at every token
of its answers. Without judge or benchmark, this is the most sensitive sign of side effects.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

from safesteer.evaluate.metrics import KL_BASE_ALIGNED, NEXT_TOKEN_AGREEMENT
from safesteer.evaluate.statistics import mean_interval
from safesteer.events import Progress
from safesteer.models.base_weights import base_weights
from safesteer.models.batch_size import rows_that_fit
from safesteer.models.chat import Message
from safesteer.models.context import fitting_prompts
from safesteer.models.generate import Decoding, generate
from safesteer.models.hidden_states import completion_states, hidden_states
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.oom import row_by_row
from safesteer.models.quantization import quantization_of
from safesteer.models.upcast import in_float32

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drift:
    """Drift by prompt.

    Attributes:
        pairs: (next-token agreement in [0, 1], KL(base || student) in nats) of each prompt, means
            over the tokens of its answer.
        dtype: type that both models computed in, such as "float32".
    """

    pairs: list[tuple[float, float]]
    dtype: str

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The entries `agreement` and `divergence` of eval/aligned.json: means over prompts."""
        agreement, divergence = [same for same, _ in self.pairs], [kl for _, kl in self.pairs]
        return {
            "agreement": self._entry(NEXT_TOKEN_AGREEMENT, agreement, share=True),
            "divergence": self._entry(KL_BASE_ALIGNED, divergence),
        }

    def _entry(self, metric: str, values: list[float], *, share: bool = False) -> dict[str, Any]:
        return {
            "metric": metric,
            "value": sum(values) / len(values),
            "ci95": list(mean_interval(values, share=share)),  # over prompts, not tokens
            "n": len(values),
            "judge": None,
            "kind": "capability",
            "dtype": self.dtype,
        }


@torch.no_grad()
def measure_drift(
    base: ChatModel,
    student: Any,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Drift:
    """Measure next-token agreement and KL(base || student) on the base's greedy answers.

    Both models compute in float32 where they can, so that the change of the weights is measured
    and not rounding.

    Args:
        base: the base model.
        student: a PEFT model around ``base.model``, or a model with all weights trained.
        prompts: conversations, harmless ones.
        max_new_tokens: length of the base's answers.
        batch_size: prompts in a batch; None takes as many as memory should hold.
        progress: called with (done, total) answers.

    Returns:
        Agreement and KL of each prompt that fits into the model's positions; `Drift.to_json` has
        their means and 95% intervals.
    """
    rendered = [base.chat.ids(messages) for messages in prompts]
    fits = fitting_prompts(base.model, rendered, max_new_tokens, "prompts of the drift")
    rendered = [rendered[row] for row in fits]
    with base_weights(base.model if student is None else student):
        answers = generate(
            base.model,
            base.tokenizer,
            rendered,
            Decoding(max_new_tokens),
            batch_size=batch_size,
            progress=progress,
        )
    sequences = [p + a for p, a in zip(rendered, answers, strict=True)]
    longest = max(sequences, key=len)
    dtype = _dtype_of_passes(base.model, student, longest)
    exact = dtype == torch.float32
    base_head, head = OutputHead.of(base.model), OutputHead.of(student)
    pad_id = base.tokenizer.pad_token_id

    def fitting(longest: int) -> int:
        return batch_size or rows_that_fit(base.model, longest, dtype.itemsize)

    def read(part: list[int]) -> list[tuple[float, float]]:
        batch = [rendered[row] for row in part], [answers[row] for row in part], pad_id
        with ExitStack() as widened:
            for model in (base.model, student) if exact else ():
                widened.enter_context(in_float32(model))
            with base_weights(student):
                before = completion_states(base.model, *batch, run_last=True)
            after = completion_states(student, *batch, run_last=True)
        found = []
        for states_0, states_s in zip(before, after, strict=True):
            log_0 = base_head.all_log_probs(states_0)
            log_s = head.all_log_probs(states_s)
            same = log_0.argmax(-1) == log_s.argmax(-1)
            kl = (log_0.exp() * (log_0 - log_s)).sum(-1).mean()
            found.append((same.float().mean().item(), kl.item()))
        return found

    most = batch_size or len(sequences)
    device = base.model.device
    pairs = row_by_row(sequences, most, read, device, fitting=fitting)
    return Drift(pairs, str(dtype).removeprefix("torch."))


def _dtype_of_passes(base: Any, student: Any, longest: list[int]) -> torch.dtype:
    """float32 if both models can compute in it, else their own type.

    Some kernels accept 16 bits only, and memory may not hold a block in float32.
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
        _log.debug("the pass in float32 failed", exc_info=True)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    clear_device_cache(garbage_collection=True)
    _log.warning(
        "drift is measured in %s, where rounding lowers agreement with the base; in float32"
        " the model fails: %s",
        str(base.dtype).removeprefix("torch."),
        reason,
    )
    return base.dtype
