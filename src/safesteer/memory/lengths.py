"""The lengths of a run's prompts, as its model renders them, or assumed without one."""

from __future__ import annotations

from safesteer.config.settings import Settings
from safesteer.memory.stages import Lengths
from safesteer.models.chat import ChatRenderer
from safesteer.prompts import load_prompt_sets
from safesteer.teacher import make_teacher

# A request of everyday length in a chat template, and a demonstration: a request with its answer.
_PROMPT, _DEMONSTRATION = 128, 64


def assumed_lengths(settings: Settings) -> Lengths:
    """For a model whose tokenizer is not at hand: prompts of 128 tokens, rounded up from ours."""
    teacher = settings.teacher
    shown = teacher.demonstrations if teacher.context in ("demonstrations", "refusals") else 0
    own = _DEMONSTRATION if teacher.context == "system-prompt" else shown * _DEMONSTRATION
    return Lengths(_PROMPT, _PROMPT + own, 0, own)


def run_lengths(chat: ChatRenderer, settings: Settings) -> Lengths:
    """What the settings' prompt sets come to with this renderer, training and test prompts alike.

    Raises InputError for prompts that cannot be read.
    """
    teacher = make_teacher(settings.teacher, None)
    messages = [
        prompt.messages
        for prompts in load_prompt_sets(settings.prompts, settings.seed).values()
        for prompt in (*prompts.train, *prompts.validation, *prompts.test)
    ]
    # Answers that are begun make prompts longer, and what the teacher reads before them differ.
    begun = max(settings.train.advanced.prefills, key=len) if settings.train.prefill_share else ""
    return Lengths.of(
        [chat.ids(m, begun) for m in messages],
        [chat.ids(teacher.messages(m, begun), begun) for m in messages]
        + [chat.ids(teacher.messages(messages[0]))],
    )
