"""Verification of an export: same token ids and next-token log-probabilities as the run's model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safesteer.errors import SafeSteerError
from safesteer.export.llama_cpp import Answer
from safesteer.export.source import Source
from safesteer.models.chat import ChatRenderer, Message
from safesteer.models.template import render

# Largest allowed difference of a log-probability, in nats, by the dtype of the export. Rounding
# alone uses a sixth to a quarter of it on the built-in model (docs/export.md).
BOUNDS = {torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.5}
POSITIONS = 16  # compared at the end of each prompt
VISIBLE = 1e-3  # tokens below this probability under both models are not compared

# Digits, line breaks, accents and other scripts: here implementations of a tokenizer differ.
_CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "How far is the moon?"},),
    (
        {"role": "user", "content": "Add 1234 and 56."},
        {"role": "assistant", "content": "1290. Anything else?"},
        {"role": "user", "content": "Na\u00efve caf\u00e9,\n\n  \u6771\u4eac: it's what?"},
    ),
    (
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Name three colors that don't clash."},
    ),
)


class Candidate(NamedTuple):
    """An export that was read back; `llama_cpp` for GGUF files only, where it is installed."""

    logits: Callable[[torch.Tensor], torch.Tensor]  # token ids [1, T] to logits [1, T, V]
    tokenizer: Any  # the export's own
    llama_cpp: Callable[[Sequence[str]], list[Answer]] | None = None

    @classmethod
    def of(cls, model: Any, folder: Path, **where: Any) -> Candidate:
        """A transformers model with the tokenizer in `folder`."""
        from transformers import AutoTokenizer

        model.eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
        return cls(lambda ids: model(ids).logits, tokenizer)


class Expected(NamedTuple):
    """The run's model on a few conversations."""

    conversations: list[tuple[Message, ...]]  # messages as a user of the export writes them
    prompts: list[list[int]]  # the token ids that the run's model reads for each
    log_probs: list[torch.Tensor]  # [POSITIONS, V] float32 for each
    template_kwargs: dict[str, Any]  # arguments of the chat template
    now: datetime  # the time that it reads
    appended: str = ""  # text that closes an empty thinking block after the template's prompt


def expect(source: Source) -> Expected:
    """Run the source's model; a teacher's context is part of the prompt."""
    variant, chat = source.variant, source.chat
    conversations = [c for c in _CONVERSATIONS if _renders(chat, c)]
    teacher = variant.teacher
    prompts = [chat.ids(teacher.messages(c) if teacher else c) for c in conversations]
    with variant.active():
        found = [last_log_probs(lambda ids: variant.runner(ids).logits, p) for p in prompts]
    conversations = [tuple(chat.shaped(c)) for c in conversations]
    kwargs = chat.template_kwargs
    return Expected(conversations, prompts, found, kwargs, chat.now, chat.appended)


def compare(expected: Expected, candidate: Candidate) -> float:
    """The largest difference of a log-probability, in nats, over prompts, positions and tokens.

    Raises SafeSteerError if the export's template or tokenizer gives other token ids.
    """
    texts = []
    for conversation, prompt in zip(expected.conversations, expected.prompts, strict=True):
        kwargs = expected.template_kwargs
        text = render(candidate.tokenizer, conversation, True, expected.now, **kwargs)
        text += expected.appended
        if list(candidate.tokenizer(text, add_special_tokens=False)["input_ids"]) != prompt:
            raise _other_tokens("its tokenizer and chat template give", conversation)
        texts.append(text)
    found = [last_log_probs(candidate.logits, prompt) for prompt in expected.prompts]
    difference = largest_difference(expected.log_probs, found)
    if candidate.llama_cpp is not None:
        difference = max(difference, _compare_llama_cpp(expected, candidate, texts))
    return difference


def _compare_llama_cpp(expected: Expected, candidate: Candidate, texts: Sequence[str]) -> float:
    """The same for llama.cpp, which returns the likeliest tokens after each prompt."""
    assert candidate.llama_cpp is not None
    tokenizer = candidate.tokenizer
    if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        texts = [text.removeprefix(tokenizer.bos_token) for text in texts]  # llama.cpp adds its own
    largest = 0.0
    for index, answer in enumerate(candidate.llama_cpp(texts)):
        if answer.tokens != len(expected.prompts[index]):
            raise _other_tokens("llama.cpp gives", expected.conversations[index])
        own = expected.log_probs[index][-1]
        for token, found in answer.top.items():
            if max(found, own[token].item()) >= math.log(VISIBLE):
                largest = max(largest, abs(found - own[token].item()))
    return largest


def mismatch(reason: str) -> SafeSteerError:
    """The error for an export that is not the run's model."""
    return SafeSteerError(
        f"the export is not the run's model and was deleted: {reason}. Try: another --dtype or"
        " --format"
    )


def _other_tokens(who: str, conversation: Sequence[Message]) -> SafeSteerError:
    return mismatch(f"read back, {who} other tokens for {conversation[-1]['content']!r}")


@torch.no_grad()
def last_log_probs(
    logits: Callable[[torch.Tensor], torch.Tensor], prompt: Sequence[int]
) -> torch.Tensor:  # [POSITIONS, V] float32
    """Next-token log-probabilities at the last positions of a prompt."""
    return torch.log_softmax(logits(torch.tensor([prompt]))[0, -POSITIONS:].float(), dim=-1)


def largest_difference(one: Sequence[torch.Tensor], two: Sequence[torch.Tensor]) -> float:
    """The largest difference of log-probabilities over tokens that either model gives `VISIBLE`.

    Infinite for values that are not finite and for vocabularies of different size.
    """
    largest = 0.0
    for a, b in zip(one, two, strict=True):
        if a.shape != b.shape or not torch.isfinite(a).all() or not torch.isfinite(b).all():
            return float("inf")
        visible = torch.maximum(a, b).exp() >= VISIBLE
        largest = max(largest, (a - b)[visible].abs().max().item())
    return largest


def _renders(chat: ChatRenderer, conversation: Sequence[Message]) -> bool:
    """Whether the template accepts the conversation; some reject a system message."""
    try:
        chat.text(conversation)
    except Exception:  # a template is a program and can fail in any way
        return False
    return True
