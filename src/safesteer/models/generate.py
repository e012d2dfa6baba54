"""Answers from a model: batches sorted by length, greedy or sampled, cut at the end of the turn.

Uses ``model.generate``; only the draw of a sampled token is ours. Knows nothing of steering: run it
inside a hook's context and the steered model answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from safesteer.models.chat import pad_left
from safesteer.models.hidden_states import share_prefix
from safesteer.models.layers import is_sharded
from safesteer.models.oom import in_batches

# What is left unset is taken from the model's generation_config.json; a repetition penalty there
# (Qwen2.5 has one) would make every answer one of another distribution than the one compared.
_PLAIN = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
}

# Part of the key under which answers are kept: raised when this file changes what they are.
GENERATION = 2

Progress = Callable[[int, int], None]  # (done, total) sequences


class InverseCdfSampler(LogitsProcessor):
    """Draws the next token by one uniform number per sequence and leaves only it possible.

    ``torch.multinomial`` on the CPU draws one exponential number per vocabulary item, which for
    small models costs as much as the model itself; the inverse of the cumulative distribution
    needs one number per sequence. The distribution is the same.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulative = torch.softmax(scores.float() / self.temperature, dim=-1).cumsum(-1)  # [B, V]
        # Scaled by the last entry, which rounding keeps from being exactly one.
        uniform = torch.rand(scores.shape[0], 1, device=scores.device) * cumulative[:, -1:]
        choice = torch.searchsorted(cumulative, uniform, right=True)
        choice.clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, choice, 0.0)


def end_of_turn_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the model's own declaration and the tokenizer's."""
    declared = model.generation_config.eos_token_id if model.generation_config else None
    ids = [declared] if isinstance(declared, int) else list(declared or [])
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    return ids


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 32,
    halve: bool = True,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Continue each prompt (token ids); returns the new ids, the token that ends the turn included.

    A batch that does not fit into memory is halved, or with `halve` off an error as it comes.

    `temperature` 0 is greedy decoding. Sampling draws from torch's global generator, so that the
    caller's seed decides. Results are in the order of `prompts`.
    """
    ends = end_of_turn_ids(model, tokenizer)
    processors = LogitsProcessorList([InverseCdfSampler(temperature)] if temperature > 0 else [])
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        disable_compile=True,
        **_PLAIN,
    )
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    device = model.device
    in_step = is_sharded(model)  # passes go on until every process has its answers

    def extend(rows: Sequence[int]) -> list[tuple[int, list[int]]]:
        ids, mask = pad_left([prompts[row] for row in rows], tokenizer.pad_token_id, device)
        _forget_pictures(model)
        shared = share_prefix(model, ids, mask, new_tokens=max_new_tokens)
        with _contiguous_head_input(model):
            output = model.generate(
                input_ids=ids if shared is None else shared.ids,
                attention_mask=mask if shared is None else shared.mask,
                past_key_values=None if shared is None else shared.cache,
                generation_config=config,
                logits_processor=processors,
                synced_gpus=in_step or None,
            )
        return list(zip(rows, output[:, ids.shape[1] :].tolist(), strict=True))

    done = 0
    for batch in in_batches(order, batch_size, extend, halve=halve and not in_step):
        for row, tokens in batch:
            stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
            answers[row] = tokens[: stop + 1]
        done += len(batch)
        if progress is not None:
            progress(done, len(order))
    return answers


def _forget_pictures(model: Any) -> None:
    """Drop what Qwen's vision models keep of the last batch's positions.

    They add it to those of any batch that begins with a cache, which ours may.
    """
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None


@contextmanager
def _contiguous_head_input(model: PreTrainedModel) -> Iterator[None]:
    """Hand the output matrix a contiguous tensor.

    After the prompt's forward transformers passes a strided slice (the last position of each
    sequence); on the CPU the product then copies the whole output matrix once per sequence, which
    for the built-in model takes longer than 30 tokens of the answer.
    """

    def contiguous(module, args):  # type: ignore[no-untyped-def]
        return (args[0].contiguous(), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(contiguous)
    try:
        yield
    finally:
        handle.remove()
