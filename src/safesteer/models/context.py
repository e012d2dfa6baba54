"""The context of a model: prompts that its positions hold together with the answer.

Prompts are never cut: one that is too long is skipped and counted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from safesteer.errors import InputError
from safesteer.models.layers import text_config

_log = logging.getLogger(__name__)


class PromptTooLong(InputError):
    """No prompt fits into the model's positions."""


def max_positions(model: Any) -> int | None:
    """The most tokens that the model was made to read; None if its configuration names none."""
    return getattr(text_config(model), "max_position_embeddings", None) or None


def fitting_prompts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    what: str = "prompts",
    most: int | None = None,
) -> list[int]:
    """Numbers of the prompts that fit; a warning counts the others.

    Args:
        model: the model that reads them.
        prompts: token ids of each.
        new_tokens: tokens of the answer, which need positions too.
        what: names the prompts in messages.
        most: a setting's limit on the tokens of a prompt; None for the model's positions alone.

    Raises:
        PromptTooLong: there are prompts, and none fits.
    """
    positions = max_positions(model)
    room = None if positions is None else max(0, positions - new_tokens)
    limit = min((n for n in (room, most) if n is not None), default=None)
    fits = [row for row, ids in enumerate(prompts) if limit is None or len(ids) <= limit]
    if len(fits) == len(prompts):
        return fits
    why = f"longer than {limit} tokens"
    if limit == room:
        why += f" (the model's {positions} positions less {new_tokens} for the answer)"
    if not fits:
        raise PromptTooLong(
            f"all {len(prompts)} {what} are {why}. Try: shorter prompts, fewer tokens to generate,"
            " or a model with more positions"
        )
    skipped = len(prompts) - len(fits)
    verb = "is" if skipped == 1 else "are"
    _log.warning("%d of %d %s %s skipped: %s", skipped, len(prompts), what, verb, why)
    return fits
