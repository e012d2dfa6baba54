"""The safety teacher: the model itself, steered or with a context before the prompt.

The same direction with the other sign makes the teacher of prompts that the model wrongly refuses.

The weights are the model's own. With a LoRA student the adapter is off while the teacher runs; no
gradient, optimizer or train mode ever touches it.
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
from safesteer.models.chat import ChatRenderer, Message
from safesteer.models.hidden_states import hidden_states


@dataclass(frozen=True)
class Teacher:
    """How the model becomes its own safety teacher.

    Attributes:
        direction: added while the teacher runs; None for a teacher that only reads a context.
        context: messages before the user's prompt, a system message or demonstrations.
        temperature: divides the logits where the teacher teaches; below 1 sharpens them.
        repair: how many times its steering is subtracted where the model is taught to answer what
            it wrongly refuses. Only a training uses it, see `safesteer.distill.rows`.

    Source: SafeSteer (arXiv 2606.02530), section 3.1, for the steered teacher; Turner et al. 2023
    (arXiv 2308.10248) and Rimsky et al. 2024 (arXiv 2312.06681) for both signs of one direction.
    """

    direction: Direction | None = None
    context: tuple[Message, ...] = field(default=())
    temperature: float = 1.0
    repair: float = 0.0

    def messages(self, messages: Sequence[Message], prefill: str = "") -> list[Message]:
        """The chat messages that the teacher reads where the student reads `messages`.

        Args:
            messages: the prompt. A system message stays first, joined with the teacher's own.
            prefill: the start of the answer, if it is prefilled. The answers of the context then
                start with it too: refusals among them show how to turn back.
        """
        own, rest = [_prefilled(message, prefill) for message in self.context], list(messages)
        if own and rest and rest[0]["role"] == "system":
            if own[0]["role"] == "system":
                joined = rest[0]["content"] + "\n\n" + own[0]["content"]
                return [{"role": "system", "content": joined}, *own[1:], *rest[1:]]
            return [rest[0], *own, *rest[1:]]
        return own + rest

    @contextmanager
    def active(self, model: nn.Module, strengths: torch.Tensor | float = 1.0) -> Iterator[None]:
        """Turn `model` into the teacher while the context is open: adapter off, hook on.

        Args:
            model: the base, or a PEFT model around it.
            strengths: how many times the model is steered, or [B] for each sequence of a batch: 1
                as this teacher, 0 not at all, below 0 away from refusal.
        """
        with base_weights(model):
            if self.direction is None:
                yield
            else:
                with self.direction.steer(model, strengths):
                    yield


def _prefilled(message: Message, prefill: str) -> Message:
    if not prefill or message["role"] != "assistant":
        return message
    return {**message, "content": f"{prefill} {message['content']}"}


def make_teacher(settings: TeacherSettings, direction: Direction | None) -> Teacher:
    """Make the teacher that the settings describe; without a direction it is not steered."""
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
    repair = settings.advanced.repair_strength / settings.strength
    return Teacher(steered, context, settings.temperature, repair)


def demonstrations(count: int, *, refusals_only: bool = False) -> tuple[Message, ...]:
    """The first `count` of our demonstrations as chat messages.

    Answered and refused requests alternate. With `refusals_only` all are refused: such a teacher
    refuses nearly everything, which suits it to teach on harmful prompts alone.
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
    """The largest change of a next-token logit between the model and its teacher on a test prompt.

    Raises:
        SafeSteerError: the change is zero, so the hook has no effect on this architecture, or its
            activations overflow.
    """
    prompt: list[Message] = [{"role": "user", "content": "How do I pick a lock?"}]
    device = next(model.parameters()).device

    def last(messages: Sequence[Message]) -> torch.Tensor:
        ids = torch.tensor([chat.without_thinking.ids(messages)], device=device)
        mask = torch.ones_like(ids)
        hidden = hidden_states(model, ids, mask)[:, -1]
        return model.get_output_embeddings()(hidden).float()  # type: ignore[operator]

    with base_weights(model):
        plain = last(prompt)
    with teacher.active(model):
        taught = last(teacher.messages(prompt))
    change = (taught - plain).abs().max().item()
    if not 0 < change < float("inf"):
        raise SafeSteerError(
            f"the teacher does not differ from the model (largest change of a logit: {change}):"
            f" steering has no effect on {type(model).__name__}. Try: another direction.source, or"
            " model.dtype=float32"
        )
    return change
