"""Variants of a model that answer: a run's base, teacher and aligned model, or any plain model.

With a LoRA student all variants of a run share one set of weights; `ModelVariant.active` switches
adapter and steering.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from safesteer.events import Progress
from safesteer.models.answer_cache import Cache, identity, weights_digest
from safesteer.models.chat import Message, Response
from safesteer.models.context import fitting_prompts
from safesteer.models.generate import Decoding, end_of_turn_ids, generate_batches
from safesteer.models.load import ChatModel
from safesteer.models.quantization import quantization_of
from safesteer.teacher import Teacher


@dataclass(frozen=True)
class ModelVariant:
    """A model that answers.

    Attributes:
        name: base, teacher or aligned; "model" for one that belongs to no run.
        runner: the module that generates: ``model.model``, the PEFT model around it, or a model
            with all weights trained.
        teacher: steering and context of the base weights (a plain `Teacher()` for the base); None
            runs `runner` as it is.
    """

    name: str
    model: ChatModel
    runner: Any
    teacher: Teacher | None = None

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        decoding: Decoding,
        *,
        prefills: Sequence[str] | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        cache: Cache | None = None,
        progress: Progress | None = None,
    ) -> list[Response]:
        """Answer each conversation, in their order. Seeds torch's global generator.

        Args:
            conversations: messages of each, the user's last.
            decoding: its length is that of thinking and answer together.
            prefills: start of each answer, "" for none. A prefilled answer has no thinking.
            batch_size: prompts in a batch; None takes as many as memory should hold.
            seed: decides sampled answers.
            cache: keeps greedy answers; make it with `identity`.
            progress: called with (done, total) conversations.
        """
        responses: dict[int, Response] = {}
        for found in self.generate_batches(
            conversations,
            decoding,
            prefills=prefills,
            batch_size=batch_size,
            seed=seed,
            cache=cache,
        ):
            responses |= found
            if progress is not None:
                progress(len(responses), len(conversations))
        return [responses[row] for row in range(len(conversations))]

    def generate_batches(
        self,
        conversations: Sequence[Sequence[Message]],
        decoding: Decoding,
        *,
        prefills: Sequence[str] | None = None,
        batch_size: int | None = None,
        seed: int | None = 0,
        cache: Cache | None = None,
    ) -> Iterator[dict[int, Response]]:
        """Answer conversations, and yield those of each batch by their numbers as they come.

        The model stays `active` until the last batch. Arguments as for `generate`; without a seed,
        sampling goes on from the state of torch's generator.

        Prompts that the model's positions do not hold together with an answer are skipped.

        Raises:
            PromptTooLong: this leaves none of them.
        """
        chat, teacher = self.model.chat, self.teacher or Teacher()
        starts = prefills or [""] * len(conversations)
        prompts = [
            chat.ids(teacher.messages(messages, prefill), prefill)
            for messages, prefill in zip(conversations, starts, strict=True)
        ]
        ends = end_of_turn_ids(self.runner, chat.tokenizer)
        fits = fitting_prompts(self.runner, prompts, decoding.max_new_tokens)

        def response(row: int, ids: list[int]) -> Response:
            # Prefill and answer are decoded together: on its own, an answer may lose the space
            # before its first word.
            made = (
                Response(chat.decode(chat.answer_ids(starts[row]) + ids))
                if starts[row]
                else chat.response(ids)
            )
            return replace(made, cut=ids[-1] not in ends)

        if skipped := set(range(len(prompts))) - set(fits):
            yield {row: Response("", finished=False, skipped=True) for row in sorted(skipped)}
        if seed is not None:
            torch.manual_seed(seed)
        with self.active():
            for found in generate_batches(
                self.runner,
                self.model.tokenizer,
                [prompts[row] for row in fits],
                decoding,
                batch_size=batch_size,
                cache=cache,
            ):
                yield {fits[row]: response(fits[row], ids) for row, ids in found.items()}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make `runner` this variant: adapter off for base and teacher, steering on if any."""
        with self.teacher.active(self.runner) if self.teacher else nullcontext():
            yield

    @cached_property
    def identity(self) -> str:
        """Hash of everything that changes greedy answers: weights, dtype, template, steering."""
        base = self.model.model
        chat = self.model.chat
        direction = self.teacher.direction if self.teacher else None
        parts: dict[str, Any] = {
            "weights": self.model.sha256 or weights_digest(_own_weights(base)),
            "dtype": str(base.dtype),
            "device": base.device.type,
            "attention": getattr(base.config, "_attn_implementation", None),
            "template": [str(chat.tokenizer.chat_template), chat.template_kwargs],
        }
        if (bits := quantization_of(base)) is not None:
            parts["quantization"] = bits
        if direction is not None:
            vector = weights_digest([("direction", direction.vector)])
            parts["steering"] = [vector, direction.layer, direction.coefficient]
        if self.teacher is None and self.runner is not base:
            parts["trained"] = _trained(self.runner)
        return identity(parts)


def _own_weights(model: Any) -> list[tuple[str, torch.Tensor]]:
    """A model's tensors without those of an adapter, under their original names."""
    return [
        (name.replace(".base_layer", ""), tensor)
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    ]


def _trained(runner: Any) -> list[Any]:
    """Digests of what was trained: the adapter with its scaling, or all weights of a model."""
    if not hasattr(runner, "peft_config"):
        return [weights_digest(runner.state_dict().items())]
    from peft import get_peft_model_state_dict

    strengths = {
        name: dict(module.scaling)
        for name, module in runner.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    # Without embeddings, for which PEFT would query the hub.
    weights = get_peft_model_state_dict(runner, save_embedding_layers=False)
    return [weights_digest(sorted(weights.items())), strengths]
