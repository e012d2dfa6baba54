"""Rendering of a chat template at a fixed time, and its changes to the user's text.

Some templates write today's date. A run keeps the time at which it started, so that it reads the
same tokens on any day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from transformers.utils import chat_template_utils

# The function that transformers gives to templates for the present time.
_CLOCK = "strftime_now"
# White space, both cases, markup, accents, other scripts, and more than a line of it.
_TEXT = '  A Line,\n\n then\t<b>\u00e9</b> & "\u6771\u4eac" it\'s 1 \\ 2  \n' + "and More " * 200


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    generation_prompt: bool,
    now: datetime,
    **template_kwargs: Any,
) -> str:
    """The text of a conversation by the tokenizer's own template, at the time `now`."""
    with frozen_clock(now):
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **template_kwargs,
            )
        )


@contextmanager
def frozen_clock(now: datetime) -> Iterator[None]:
    """Let every template that is rendered meanwhile read the time `now`."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return now

    # transformers offers no argument for it: what is passed as one reaches templates as text.
    module: Any = chat_template_utils
    own = module.datetime
    module.datetime = Clock
    try:
        yield
    finally:
        module.datetime = own


def reads_clock(template: str) -> bool:
    """Whether a template may write the date or the time."""
    return _CLOCK in template


def shows(rendered: str, text: str) -> bool:
    """Whether a rendered conversation holds a text, whatever its case and white space."""
    return text in rendered or _squashed(text) in _squashed(rendered)


def change_of_text(rendered: Callable[[str], str]) -> str:
    """What a template does to a user's text, as a verb; empty if it shows it as it is.

    `rendered` makes a conversation of one text.
    """
    found = rendered(_TEXT)
    if _TEXT in found:
        return ""
    if _TEXT.strip() in found:
        return "removes white space at the ends of"
    return "changes case or white space of" if shows(found, _TEXT) else "changes"


def _squashed(text: str) -> str:
    return "".join(text.casefold().split())
