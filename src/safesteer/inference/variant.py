"""Who answers: a model as it is, or a run's base, teacher or aligned model.

All three of a run share one set of weights where the student is a LoRA adapter, so that none of
them can be asked without saying which one is meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from safesteer.models.answer_cache import Cache, identity, weights_digest
from safesteer.models.chat import Message, Response
from safesteer.models.generate import Decoding, Progress, end_of_turn_ids, generate
from safesteer.models.load import ChatModel
from safesteer.models.quantization import quantization_of
from safesteer.teacher import Teacher


@dataclass(frozen=True)
class ModelVariant:
    """A model that answers.

    Attributes:
        name: base, teacher, aligned, or model for one that belongs to no run.
        model: base weights, tokenizer and template.
        runner: what generates: ``model.model``, the PEFT model around it, or trained weights.
        teacher: how the base weights speak (a plain `Teacher()` for the base); None: as they are.
    """

    name: str
    model: ChatModel
    runner: Any
    teacher: Teacher | None = None

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        prefills: Sequence[str] | None = None,
        max_new_tokens: int,
        temperature: float = 0.0,
        batch_size: int | None = None,
        seed: int = 0,
        cache: Cache | None = None,
        progress: Progress | None = None,
    ) -> list[Response]:
        """Thoughts and answer to each conversation, in their order; greedy at temperature 0.

        `max_new_tokens` are for both. `prefills` are the beginnings of the answers, which the model
        goes on from, without thoughts. `batch_size` None takes as many at once as fit. `cache`
        keeps greedy answers; make it with `identity`.
        """
        teacher = self.teacher or Teacher()
        begun = prefills or [""] * len(conversations)
        prompts = [
            self.model.chat.ids(teacher.messages(messages, start), start)
            for messages, start in zip(conversations, begun, strict=True)
        ]
        torch.manual_seed(seed)
        with self.speaking():
            answers = generate(
                self.runner,
                self.model.tokenizer,
                prompts,
                Decoding(max_new_tokens, temperature),
                batch_size=batch_size,
                cache=cache,
                progress=progress,
            )
        # Decoded together: on its own, some tokenizers drop the space before the first word.
        chat = self.model.chat
        said = [
            Response(chat.decode(chat.answer_ids(start) + ids)) if start else chat.response(ids)
            for start, ids in zip(begun, answers, strict=True)
        ]
        ends = end_of_turn_ids(self.runner, chat.tokenizer)
        return [
            replace(each, cut=ids[-1] not in ends) for each, ids in zip(said, answers, strict=True)
        ]

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """While inside, `runner` is this variant: adapter off for the base, hook on if steered."""
        if self.teacher is None:
            yield
        else:
            with self.teacher.active(self.runner):
                yield

    @cached_property
    def identity(self) -> str:
        """A hash of whatever changes the answers: weights, adapter, type, template, steering."""
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
    """The tensors of a model without those of an adapter, under the names they had before it."""
    return [
        (name.replace(".base_layer", ""), tensor)
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    ]


def _trained(runner: Any) -> list[Any]:
    """What training made: the adapter and how strongly it acts, or a model's whole weights."""
    if not hasattr(runner, "peft_config"):
        return [weights_digest(runner.state_dict().items())]
    from peft import get_peft_model_state_dict

    strengths = {
        name: dict(module.scaling)
        for name, module in runner.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    # Without the embeddings: PEFT would ask the hub whether they are still those of the base.
    weights = get_peft_model_state_dict(runner, save_embedding_layers=False)
    return [weights_digest(sorted(weights.items())), strengths]
