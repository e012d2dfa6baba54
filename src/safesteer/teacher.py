"""The safety teacher: the model itself, steered, or with something to read before the prompt.

The weights are the model's own. With a LoRA student the adapter is switched off while the teacher
runs; no gradient, optimiser or train mode ever touches it. Knows nothing of losses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources

import torch
from torch import nn

from safesteer.config.settings import TeacherSettings
from safesteer.direction.vector import Direction
from safesteer.errors import SafeSteerError
from safesteer.models.base_weights import base_weights
from safesteer.models.chat import ChatRenderer, Message, pad_left
from safesteer.models.hidden_states import hidden_states


@dataclass(frozen=True)
class Teacher:
    """How the model is turned into its own safety teacher.

    Attributes:
        direction: added while the teacher runs; None for a teacher that only reads a context.
        context: messages that stand before the user's prompt, a system message or demonstrations.
        temperature: divides its logits where it teaches; below 1 it is surer of what it says.
    """

    direction: Direction | None = None
    context: tuple[Message, ...] = field(default=())
    temperature: float = 1.0

    def messages(self, messages: Sequence[Message], begun: str = "") -> list[Message]:
        """What the teacher reads where the student reads `messages`.

        A system message in `messages` stays first and is joined with the teacher's own. Where an
        answer is `begun`, those of the context begin with the same words: they show how to go on
        from there, and refusals how to turn back.
        """
        own, rest = [_beginning(message, begun) for message in self.context], list(messages)
        if own and rest and rest[0]["role"] == "system":
            if own[0]["role"] == "system":
                joined = rest[0]["content"] + "\n\n" + own[0]["content"]
                return [{"role": "system", "content": joined}, *own[1:], *rest[1:]]
            return [rest[0], *own, *rest[1:]]
        return own + rest

    @contextmanager
    def active(self, model: nn.Module, rows: torch.Tensor | None = None) -> Iterator[None]:
        """While inside, `model` is the teacher: adapter off, hook on. Leaves nothing behind.

        `rows`, bool [B], steers these rows of a batch alone; the others run as the base does.
        """
        with base_weights(model):
            if self.direction is None:
                yield
            else:
                with self.direction.steer(model, rows):
                    yield


def _beginning(message: Message, words: str) -> Message:
    if not words or message["role"] != "assistant":
        return message
    return {**message, "content": f"{words} {message['content']}"}


def make_teacher(settings: TeacherSettings, direction: Direction | None) -> Teacher:
    """The teacher that the settings describe."""
    context: tuple[Message, ...] = ()
    if settings.context == "system-prompt":
        context = ({"role": "system", "content": settings.advanced.system_prompt},)
    elif settings.context == "demonstrations":
        context = demonstrations(settings.demonstrations)
    elif settings.context == "refusals":
        context = demonstrations(settings.demonstrations, refusals_only=True)
    if not settings.steers or direction is None:
        return Teacher(None, context, settings.temperature)
    steered = replace(direction, coefficient=direction.coefficient * settings.strength)
    return Teacher(steered, context, settings.temperature)


def demonstrations(count: int, *, refusals_only: bool = False) -> tuple[Message, ...]:
    """The first `count` of our demonstrations as chat turns: answered and refused, alternating.

    `refusals_only` leaves out the answered ones. Such a teacher refuses nearly everything, which is
    right where it only ever teaches on harmful prompts.
    """
    file = resources.files("safesteer.prompts") / "data" / "demonstrations.json"
    turns: list[Message] = []
    for shown in json.loads(file.read_text("utf-8")):
        if refusals_only and not shown["refused"]:
            continue
        turns.append({"role": "user", "content": shown["request"]})
        turns.append({"role": "assistant", "content": shown["answer"]})
    return tuple(turns[: 2 * count])


@torch.no_grad()
def check_teacher(model: nn.Module, chat: ChatRenderer, teacher: Teacher) -> float:
    """Self-test: the largest change of a next-token logit that the teacher makes.

    Raises SafeSteerError when it is zero or not finite, that is, when the hook does nothing on
    this architecture or blows up.
    """
    prompt: list[Message] = [{"role": "user", "content": "How do I pick a lock?"}]
    tokenizer = chat.tokenizer
    device = next(model.parameters()).device

    def last(messages: Sequence[Message]) -> torch.Tensor:
        ids, mask = pad_left([chat.closed.ids(messages)], tokenizer.pad_token_id, device)
        hidden = hidden_states(model, ids, mask)[:, -1]
        return model.get_output_embeddings()(hidden).float()  # type: ignore[operator]

    with base_weights(model):
        plain = last(prompt)
    with teacher.active(model):
        taught = last(teacher.messages(prompt))
    change = (taught - plain).abs().max().item()
    if not change > 0 or change == float("inf"):
        raise SafeSteerError(
            f"the teacher does not differ from the model (largest change of a logit: {change});"
            f" steering has no effect on {type(model).__name__}"
        )
    return change
