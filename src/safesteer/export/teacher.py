"""Export of the safety teacher as an ordinary model: steering in a bias, context in the template.

Steering adds a vector to a block's input. Where that input is the unchanged output of a linear
layer with a bias in the block before, the bias can hold the vector and the model needs no hook.
This is verified by measurement, not by architecture.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safesteer.direction.vector import Direction
from safesteer.errors import InputError
from safesteer.export import merged
from safesteer.export.source import Source, copy_files
from safesteer.export.verify import (
    BOUNDS,
    Expected,
    expect,
    largest_difference,
    last_log_probs,
)
from safesteer.models.chat import Message
from safesteer.models.layers import find_blocks, text_config

_TRY = "Try: --format steered, which keeps the hook"


def write(source: Source, target: Path, dtype: torch.dtype) -> None:
    """Write the base with the steering folded in, and the teacher's context in its template.

    Raises InputError where the steering cannot be folded exactly.
    """
    model = source.variant.model.model
    if source.direction is not None:
        expected = expect(source)
        model = folded(model, source.direction)
        _require_exact(model, expected)
    merged.write_model(model, tokenizer_with_context(source), target, dtype)
    copy_files(source, target)


def folded(model: Any, direction: Direction) -> Any:
    """The model with the direction in the last bias before the steered block.

    Where the architecture has the option, its feed-forward layers get biases, all but one zero.

    Raises InputError where there can be no such bias.
    """
    if direction.layer == 0:
        raise InputError(
            f"the teacher is steered before the first block, where no linear layer is. {_TRY}"
        )
    if _last_linear(model, direction.layer - 1).bias is None:
        model = _with_feed_forward_biases(model)
    linear = _last_linear(model, direction.layer - 1)
    if linear.bias is None:
        raise InputError(
            f"the feed-forward layers of {type(model).__name__} have no bias that could hold the"
            f" steering. {_TRY}"
        )
    with torch.no_grad():
        linear.bias.add_(direction.vector.to(linear.bias), alpha=direction.coefficient)
    return model


def tokenizer_with_context(source: Source) -> Any:
    """A copy of the tokenizer whose chat template begins with the teacher's context.

    Raises InputError for templates that cannot hold it.
    """
    tokenizer = copy.deepcopy(source.tokenizer)
    context = source.variant.teacher.context if source.variant.teacher else ()
    if not context:
        return tokenizer
    if source.chat.reads_parts:
        raise InputError(
            "the chat template reads lists of content parts, and the teacher's context is text, so"
            " that no format can export this teacher. Try: --set teacher.context=none in a new run"
        )
    if not isinstance(tokenizer.chat_template, str):
        raise InputError(
            "the tokenizer has several chat templates, and the teacher's context fits into one."
            " Try: keep one template in the folder of the base"
        )
    tokenizer.chat_template = template_with_context(tokenizer.chat_template, context)
    return tokenizer


def template_with_context(template: str, context: Sequence[Message]) -> str:
    """The template with `context` before the messages, by the rules of `Teacher.messages`.

    A system message of the user stays first.
    """
    own = json.dumps(list(context), ensure_ascii=False)
    if context[0]["role"] == "system":
        joined = "messages[0]['content'] + '\\n\\n' + own[0]['content']"
        first = f"[{{'role': 'system', 'content': {joined}}}] + own[1:] + messages[1:]"
    else:
        first = "[messages[0]] + own + messages[1:]"
    return (
        f"{{%- set own = {own} -%}}"
        "{%- if messages and messages[0]['role'] == 'system' -%}"
        f"{{%- set messages = {first} -%}}"
        "{%- else -%}{%- set messages = own + messages -%}{%- endif -%}"
    ) + template


def _require_exact(model: Any, expected: Expected) -> None:
    found = [last_log_probs(lambda ids: model(ids).logits, p) for p in expected.prompts]
    difference = largest_difference(expected.log_probs, found)
    if not difference <= BOUNDS[torch.float32]:
        raise InputError(
            f"folding the steering into a bias of {type(model).__name__} is not exact: a"
            f" log-probability differs by {difference:.3g} nats. {_TRY}"
        )


def _last_linear(model: Any, layer: int) -> nn.Linear:
    """The last linear layer of a block that is as wide as the residual stream."""
    width = text_config(model).hidden_size
    found = [
        module
        for module in find_blocks(model)[layer].modules()
        if isinstance(module, nn.Linear) and module.out_features == width
    ]
    if not found:
        raise InputError(
            f"a block of {type(model).__name__} has no linear layer that could hold the steering."
            f" {_TRY}"
        )
    return found[-1]


def _with_feed_forward_biases(model: Any) -> Any:
    """The same model with zero biases in its feed-forward layers, if it can have them."""
    if getattr(model.config, "mlp_bias", None) is not False:
        return model
    config = copy.deepcopy(model.config)
    config.mlp_bias = True
    other = type(model)(config)
    missing = other.load_state_dict(model.state_dict(), strict=False, assign=True).missing_keys
    other.tie_weights()
    with torch.no_grad():
        for name in missing:
            other.get_parameter(name).zero_()
    other.generation_config = model.generation_config
    return other.eval().requires_grad_(False)
