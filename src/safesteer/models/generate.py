"""Generation in batches sorted by length, greedy or sampled, cut at the end of the turn.

Runs ``model.generate``; only the draw of a sampled token is ours. Inside a steering context the
steered model answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from safesteer.errors import InputError
from safesteer.events import Progress
from safesteer.models.answer_cache import Cache
from safesteer.models.batch_size import rows_that_fit
from safesteer.models.chat import pad_left
from safesteer.models.hidden_states import hidden_states, share_prefix
from safesteer.models.layers import is_sharded, without_adapter
from safesteer.models.oom import BatchSize, in_batches
from safesteer.models.overflow import check_finite

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # used of a generation_config.json


class InverseCdfSampler(LogitsProcessor):
    """Sampling by the inverse cumulative distribution: one uniform number per sequence.

    ``torch.multinomial`` on the CPU draws one number per vocabulary entry, which for small models
    costs as much as the model itself. The distribution is the same.
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
    """Token ids that end an answer, by the model's generation config and the tokenizer."""
    declared = model.generation_config.eos_token_id if model.generation_config else None
    ids = [declared] if isinstance(declared, int) else list(declared or [])
    if not all(isinstance(token, int) for token in ids):
        raise InputError(
            f"generation_config.json: eos_token_id = {declared!r:.80} is no token. Try: its number"
        )
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    return ids


def unused_wishes(asked: Mapping[str, Any]) -> list[str]:
    """The options of a model's generation config that would change its text, in their order."""
    neutral = GenerationConfig._get_default_generation_params()
    return [
        key
        for key, value in asked.items()
        if key not in (*IDS, "transformers_version") and not key.startswith("_")
        # A neutral value, such as a temperature of 1, is no wish.
        if value is not None and value is not False and value != neutral.get(key)
    ]


@contextmanager
def plain_generation(model: Any, tokenizer: Any) -> Iterator[GenerationConfig]:
    """Let `model` generate by what it is told alone, and not by its generation_config.json.

    transformers takes what a call leaves unset from the model's own configuration: penalties,
    forbidden tokens, other ways to search. Here it has none but the ids of end and padding.
    """
    plain = GenerationConfig(
        eos_token_id=end_of_turn_ids(model, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    inner = without_adapter(model)
    # PEFT's wrapper hands a configuration of its own down to the model, if it has one.
    owners = [each for each in (inner, model) if "generation_config" in vars(each)]
    own = [each.generation_config for each in owners]
    try:
        for each in owners:
            each.generation_config = plain
        yield plain
    finally:
        for each, config in zip(owners, own, strict=True):
            each.generation_config = config


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded."""

    max_new_tokens: int
    temperature: float = 0.0  # 0 is greedy decoding


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    batch_size: int | BatchSize | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Continue each prompt with the model's answer, see `generate_batches`.

    Returns:
        The new token ids of each prompt, including the token that ends the turn.
    """
    answers: dict[int, list[int]] = {}
    for found in generate_batches(
        model, tokenizer, prompts, decoding, batch_size=batch_size, cache=cache
    ):
        answers |= found
        if progress is not None:
            progress(len(answers), len(prompts))
    return [answers[row] for row in range(len(prompts))]


@torch.no_grad()
def generate_batches(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    batch_size: int | BatchSize | None = None,
    cache: Cache | None = None,
) -> Iterator[dict[int, list[int]]]:
    """Continue prompts with the model's answers, and yield those of each batch as they come.

    Sampling draws from torch's global generator, so the caller's seed decides.

    Args:
        model: a causal language model, or a PEFT model around one.
        tokenizer: its tokenizer, with a padding token.
        prompts: token ids of each prompt; the longest are answered first.
        decoding: length and temperature.
        batch_size: prompts in a batch; None takes as many as memory should hold. A batch that does
            not fit is halved, except in passes that several processes make in step.
        cache: greedy answers are read from here and kept here, batch by batch.

    Yields:
        {number of the prompt: new token ids, including the token that ends the turn}.

    Raises:
        SafeSteerError: memory does not hold a single prompt, or activations are NaN or infinite.
    """
    ends = end_of_turn_ids(model, tokenizer)
    in_step = is_sharded(model)

    def fitting(longest: int) -> int:
        if batch_size is not None:
            return len(prompts)
        return rows_that_fit(model, longest + decoding.max_new_tokens)

    def answer(rows: list[int]) -> list[list[int]]:
        batch = [list(prompts[row]) for row in rows]
        if cache is None or decoding.temperature > 0:
            return _continue_batch(model, tokenizer, batch, decoding, in_step)
        key = {"prompts": batch, "max_new_tokens": decoding.max_new_tokens, "ends": ends}
        found = cache.get(key)
        if not isinstance(found, list) or len(found) != len(rows):
            found = _continue_batch(model, tokenizer, batch, decoding, in_step)
            cache.put(key, found)
        return found

    for rows, found in in_batches(
        prompts,
        batch_size or len(prompts),
        answer,
        model.device,
        fitting=fitting,
        passes=1 + decoding.max_new_tokens,
        in_step=in_step,
    ):
        yield dict(zip(rows, found, strict=True))


def _continue_batch(
    model: Any, tokenizer: Any, prompts: list[list[int]], decoding: Decoding, in_step: bool
) -> list[list[int]]:
    """Answers to one batch, each cut after the token that ends its turn."""
    ends = end_of_turn_ids(model, tokenizer)
    sampler = [InverseCdfSampler(decoding.temperature)] if decoding.temperature > 0 else []
    ids, mask = pad_left(prompts, tokenizer.pad_token_id, model.device)
    _reset_image_positions(model)
    shared = share_prefix(model, ids, mask, new_tokens=decoding.max_new_tokens)
    sound = _sound_head_input(model, lambda: hidden_states(model, ids, mask))
    with plain_generation(model, tokenizer) as config, sound:
        config.max_new_tokens, config.do_sample = decoding.max_new_tokens, False
        config.disable_compile = True
        output = model.generate(
            input_ids=ids if shared is None else shared.ids,
            attention_mask=mask if shared is None else shared.mask,
            past_key_values=None if shared is None else shared.cache,
            generation_config=config,
            logits_processor=LogitsProcessorList(sampler),
            synced_gpus=in_step or None,  # passes continue until every process has its answers
        )
    answers = []
    for tokens in output[:, ids.shape[1] :].tolist():
        stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
        answers.append(tokens[: stop + 1])
    return answers


def _reset_image_positions(model: Any) -> None:
    """Reset the position offsets that Qwen's vision models keep from their last batch.

    They would be added to the positions of a batch that starts from a cache, as ours may.
    """
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None


@contextmanager
def _sound_head_input(model: PreTrainedModel, again: Callable[[], Any]) -> Iterator[None]:
    """Check that the output matrix's input is finite, and make it contiguous.

    After the prompt transformers passes a strided slice (the last position of each sequence), for
    which the product on the CPU copies the whole output matrix once per sequence. `again` reads the
    prompts, to name the block that overflows.
    """

    def sound(module, args):  # type: ignore[no-untyped-def]
        check_finite(model, args[0], again=again)
        return (args[0].contiguous(), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(sound)
    try:
        yield
    finally:
        handle.remove()
