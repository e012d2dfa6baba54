"""Whether an export says what the run's model says, by the next-token log-probabilities of both.

Knows nothing of formats: it compares two functions from token ids to logits, and two tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from safesteer.errors import SafeSteerError
from safesteer.export.llama_cpp import Answer
from safesteer.export.source import Source
from safesteer.models.chat import ChatRenderer, Message

# Largest difference of a log-probability, in nats, by the type that the export is stored in. Exact
# arithmetic would leave zero; rounding alone leaves a quarter to a sixth of these on the built-in
# model (docs/export.md).
BOUNDS = {torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.5}
POSITIONS = 16  # compared at the end of each prompt
VISIBLE = 1e-3  # tokens that neither model gives this probability are not compared

# Digits, line breaks, accents and other scripts: where readers of a tokenizer differ.
_CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "How far is the moon?"},),
    (
        {"role": "user", "content": "Add 1234 and 56."},
        {"role": "assistant", "content": "1290. Anything else?"},
        {"role": "user", "content": "Na\u00efve caf\u00e9,\n\n  \u6771\u4eac: it's what?"},
    ),
    (
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Name three colours that don't clash."},
    ),
)


class Candidate(NamedTuple):
    """An export that was read back.

    Attributes:
        logits: token ids [1, T] to logits [1, T, V].
        tokenizer: the one that lies in the export.
        llama_cpp: asks llama.cpp about prompts, where the export is for it and it is installed.
    """

    logits: Callable[[torch.Tensor], torch.Tensor]
    tokenizer: Any
    llama_cpp: Callable[[Sequence[str]], list[Answer]] | None = None


class Expected(NamedTuple):
    """What the run's model says.

    Attributes:
        conversations: what the user of the export writes.
        prompts: the token ids that the run's model reads for each.
        log_probs: one [POSITIONS, V] float32 for each.
        template_kwargs: arguments of the chat template.
        appended: what closes an empty thinking block behind the template's prompt.
    """

    conversations: list[tuple[Message, ...]]
    prompts: list[list[int]]
    log_probs: list[torch.Tensor]
    template_kwargs: dict[str, Any]
    appended: str = ""


def expect(source: Source) -> Expected:
    """Ask the run's model; with a teacher, what it reads first is part of the prompt."""
    variant, chat = source.variant, source.chat
    conversations = [c for c in _CONVERSATIONS if _renders(chat, c)]
    teacher = variant.teacher
    prompts = [chat.ids(teacher.messages(c) if teacher else c) for c in conversations]
    with variant.active():
        found = [last_log_probs(lambda ids: variant.runner(ids).logits, p) for p in prompts]
    conversations = [tuple(chat.shaped(c)) for c in conversations]
    return Expected(conversations, prompts, found, chat.template_kwargs, chat.appended)


def compare(expected: Expected, candidate: Candidate) -> float:
    """The largest difference of a log-probability, in nats, over prompts, positions and tokens.

    Raises SafeSteerError when the export's template or tokenizer makes other token ids.
    """
    texts = []
    for conversation, prompt in zip(expected.conversations, expected.prompts, strict=True):
        text = candidate.tokenizer.apply_chat_template(
            list(conversation),
            tokenize=False,
            add_generation_prompt=True,
            **expected.template_kwargs,
        )
        text += expected.appended
        if list(candidate.tokenizer(text, add_special_tokens=False)["input_ids"]) != prompt:
            raise _other_tokens("its tokenizer and chat template make", conversation)
        texts.append(text)
    found = [last_log_probs(candidate.logits, prompt) for prompt in expected.prompts]
    difference = largest_difference(expected.log_probs, found)
    if candidate.llama_cpp is not None:
        difference = max(difference, _compare_llama_cpp(expected, candidate, texts))
    return difference


def _compare_llama_cpp(expected: Expected, candidate: Candidate, texts: Sequence[str]) -> float:
    """The same of llama.cpp, which tells the likeliest tokens after each prompt."""
    assert candidate.llama_cpp is not None
    tokenizer = candidate.tokenizer
    if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        texts = [text.removeprefix(tokenizer.bos_token) for text in texts]  # it adds its own
    largest = 0.0
    for index, answer in enumerate(candidate.llama_cpp(texts)):
        if answer.tokens != len(expected.prompts[index]):
            raise _other_tokens("llama.cpp makes", expected.conversations[index])
        own = expected.log_probs[index][-1]
        for token, found in answer.top.items():
            if max(found, own[token].item()) >= math.log(VISIBLE):
                largest = max(largest, abs(found - own[token].item()))
    return largest


def _other_tokens(who: str, conversation: Sequence[Message]) -> SafeSteerError:
    return SafeSteerError(
        f"the export is not the run's model: read back, {who} other tokens of"
        f" {conversation[-1]['content']!r}; nothing was kept"
    )


@torch.no_grad()
def last_log_probs(
    logits: Callable[[torch.Tensor], torch.Tensor], prompt: Sequence[int]
) -> torch.Tensor:  # [POSITIONS, V] float32
    """Log-probabilities of the next token at the last positions of a prompt."""
    return torch.log_softmax(logits(torch.tensor([prompt]))[0, -POSITIONS:].float(), dim=-1)


def largest_difference(one: Sequence[torch.Tensor], two: Sequence[torch.Tensor]) -> float:
    """The largest difference of log-probabilities, over tokens that either finds visible.

    Not finite values, and vocabularies of different size, are infinitely different.
    """
    largest = 0.0
    for a, b in zip(one, two, strict=True):
        if a.shape != b.shape or not torch.isfinite(a).all() or not torch.isfinite(b).all():
            return float("inf")
        visible = torch.maximum(a, b).exp() >= VISIBLE
        largest = max(largest, (a - b)[visible].abs().max().item())
    return largest


def _renders(chat: ChatRenderer, conversation: Sequence[Message]) -> bool:
    """Whether the template takes it: some refuse a system message."""
    try:
        chat.text(conversation)
    except Exception:  # a template is a program: it can fail in any way
        return False
    return True
