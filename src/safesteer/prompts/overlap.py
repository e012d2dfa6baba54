"""Prompts of the harmless side that a harmful set holds too, word for word or nearly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from safesteer.errors import InputError
from safesteer.prompts.load import Prompt
from safesteer.prompts.rows import PROMPT_SETS
from safesteer.prompts.splits import PromptSet, load_prompt_set, nearly_equal

MOST_HARMFUL = 0.02  # the largest share of a harmless set that a harmful one may hold too
_SHOWN = 5


def harmful_too(sets: Mapping[str, PromptSet]) -> dict[str, list[str]]:
    """Find prompts that nearly stand in the run's harmful set, or in SafeSteer's own.

    Args:
        sets: the harmful, harmless and borderline sets.

    Returns:
        {set: ids of such prompts}, for the harmless and the borderline set.

    Raises:
        InputError: they are more than 2% of a set.
    """
    harmful = [*_all(sets["harmful"]), *_all(load_prompt_set("harmful"))]
    found = {}
    for name in PROMPT_SETS[1:]:
        prompts = list(_all(sets[name]))
        found[name] = [prompts[row].id for row in nearly_equal(prompts, harmful)]
        check_share(sets[name], found[name], len(prompts), MOST_HARMFUL, "are harmful prompts")
    return found


def check_share(found: PromptSet, ids: Sequence[str], count: int, most: float, what: str) -> None:
    """Raise InputError if more than the share `most` of `count` prompts of a set have these ids.

    The message shows no text of a prompt.
    """
    if len(ids) > most * count:
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        raise InputError(
            f"prompts.{found.name} = {found.source}: {len(ids)} of {count} prompts"
            f" {what} ({', '.join(ids[:_SHOWN])}{more}), and a model must not learn to answer"
            f" these; {100 * most:g}% is the limit. Try: without these prompts, or"
            " train.wrong_refusals=keep"
        )


def _all(found: PromptSet) -> Iterator[Prompt]:
    yield from (*found.train, *found.validation, *found.test)
