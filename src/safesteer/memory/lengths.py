"""Prompt lengths of a run, rendered with its model's template or assumed."""

from __future__ import annotations

from safesteer.config.settings import Settings
from safesteer.memory.stages import Lengths
from safesteer.models.chat import ChatRenderer
from safesteer.prompts import load_prompt_sets
from safesteer.teacher import make_teacher

# Tokens of a typical request in a chat template, and of a request with its answer.
_PROMPT, _DEMONSTRATION = 128, 64


def assumed_lengths(settings: Settings) -> Lengths:
    """Lengths without a tokenizer: prompts of 128 tokens, rounded up from our own sets."""
    teacher = settings.teacher
    shown = teacher.demonstrations if teacher.context in ("demonstrations", "refusals") else 0
    own = _DEMONSTRATION if teacher.context == "system-prompt" else shown * _DEMONSTRATION
    return Lengths(_PROMPT, _PROMPT + own, 0, own)


def run_lengths(chat: ChatRenderer, settings: Settings) -> Lengths:
    """Lengths of the settings' prompt sets, all splits, with this renderer.

    Raises InputError for prompts that cannot be read.
    """
    teacher = make_teacher(settings.teacher, None)
    messages = [
        prompt.messages
        for prompts in load_prompt_sets(settings.prompts, settings.seed).values()
        for prompt in (*prompts.train, *prompts.validation, *prompts.test)
    ]
    # A prefill makes prompts longer, and changes the teacher's context.
    prefill = max(settings.train.advanced.prefills, key=len) if settings.train.prefill_share else ""
    return Lengths.of(
        [chat.ids(m, prefill) for m in messages],
        [chat.ids(teacher.messages(m, prefill), prefill) for m in messages]
        + [chat.ids(teacher.messages(messages[0]))],
    )
