"""Detection of a chat template's thinking block, for models that think before they answer.

Small conversations are rendered and compared, so that no model has to be known by name
(docs/thinking.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Render = Callable[..., str]  # (messages, generation prompt, **template arguments) -> text

# Arguments by which templates turn thinking on; here too, even if the template does not read them.
SWITCHES = ("enable_thinking", "thinking")
# Keys of a message's thoughts.
_FIELDS = ("reasoning_content", "reasoning", "thinking")
# Private-use characters: they occur in no template and survive its trimming.
_USER, _ANSWER, _THOUGHT = "\ue000", "\ue001", "\ue002"
_TAG = re.compile(r"(?:<(\w+)>|\[(\w+)\])\s*$")
_THINKING_TAG = re.compile(
    r"[<\[\u25c1][^\w\s/]*(?!end)\w*(?:think|thought|reason|reflect)\w*[^\w\s/]*[>\]\u25b7]\s*$",
    re.IGNORECASE,
)
_EMPTY = re.compile(r"(?:<(\w+)>\s*</\1>|\[(\w+)\]\s*\[/\2\])\s*$")


@dataclass(frozen=True)
class Thinking:
    """The thinking block of a template, and its use."""

    opening: str  # text before the thoughts, including white space
    closing: str  # text between the thoughts and the answer
    on: bool  # whether the model may think; if not, prompts end in an empty, closed block
    template_kwargs: dict[str, Any]  # the template's arguments for that
    close: str  # text that closes the block at the end of a prompt; empty if the template does so
    inside: bool  # whether the template's prompts end inside the block

    @property
    def record(self) -> dict[str, Any]:
        """The manifest's record of the block."""
        return {
            "on": self.on,
            "opening": self.opening.strip(),
            "closing": self.closing.strip(),
            "template_kwargs": self.template_kwargs,
            "appended": "" if self.on else self.close,
        }


def find_thinking(
    render: Render, template_kwargs: Mapping[str, Any], source: str
) -> Thinking | None:
    """Find the thinking block of a template.

    Args:
        render: renders (messages, generation prompt, **template arguments) to text.
        template_kwargs: the template's arguments; thinking stays off unless one of `SWITCHES` is
            true in them.
        source: text of the template and of the tokenizer's added tokens.

    Returns:
        The block; None if the template has none.
    """
    kwargs = dict(template_kwargs)
    shown = _USER in render([{"role": "user", "content": _USER}], True, **kwargs)
    found = _block(render, kwargs, source) if shown else None
    if found is None:
        return None
    opening, closing = found
    on = any(kwargs.get(name) is True for name in SWITCHES)
    if not on and _prompt(render, kwargs) != _prompt(render, {**kwargs, SWITCHES[0]: False}):
        kwargs[SWITCHES[0]] = False
    prompt, answered = _prompt(render, kwargs), _before_answer(render, kwargs)
    inside = prompt.rstrip().endswith(opening.strip())
    if inside:
        close = closing
    elif closing.strip() in prompt:
        close = ""
    elif answered.startswith(prompt) and answered[len(prompt) :].strip():
        close = answered[len(prompt) :]  # as the template writes an answer without thoughts
    else:
        # The template does not show whether the model thinks by itself; the user has to say so.
        close = opening + closing if on else ""
    return Thinking(opening, closing, on, kwargs, close, inside)


def unclosed_thinking(render: Render, template_kwargs: Mapping[str, Any]) -> str:
    """The tag with which prompts end where it opens thoughts, as its name says; empty without one.

    Ask it of a template in which `find_thinking` finds no block: then it is unknown whether the
    model thinks, and where its answer starts.
    """
    tag = _THINKING_TAG.search(_prompt(render, template_kwargs))
    return tag[0].strip() if tag else ""


def _block(render: Render, kwargs: Mapping[str, Any], source: str) -> tuple[str, str] | None:
    """(opening, closing) of the thinking block, including white space; None if there is none."""
    thinks = {**kwargs, **dict.fromkeys(SWITCHES, True)}
    prompts = [_prompt(render, thinks), _prompt(render, kwargs)]
    for name in _FIELDS:
        answer = {"role": "assistant", "content": _ANSWER, name: _THOUGHT}
        shown = _after_user(render, thinks, [answer])
        before, thought, rest = shown.partition(_THOUGHT)
        closing, answered, _ = rest.partition(_ANSWER)
        if thought and answered and closing.strip():
            opening = before.removeprefix(prompts[0])
            if not opening.strip() or opening == before:  # opened by the prompt: the last tag
                opening = before[max(before.rfind("<"), before.rfind("["), 0) :]
            return opening, closing
    off = _prompt(render, {**kwargs, SWITCHES[0]: False})
    for prompt, pattern in [(off, _EMPTY), *((prompt, _TAG) for prompt in prompts)]:
        tag = pattern.search(prompt)
        if tag is None:
            continue
        name = tag[1] or tag[2]
        one, two = (f"<{name}>", f"</{name}>") if tag[1] else (f"[{name}]", f"[/{name}]")
        # A tag before answers without thoughts belongs to the answer.
        if two in source and (pattern is _EMPTY or prompt != _before_answer(render, kwargs)):
            return one + "\n", "\n" + two + "\n\n"
    return None


def _prompt(render: Render, kwargs: Mapping[str, Any]) -> str:
    """The end of a prompt, after the user's text."""
    text = render([{"role": "user", "content": _USER}], True, **kwargs)
    return text.rpartition(_USER)[2]


def _before_answer(render: Render, kwargs: Mapping[str, Any]) -> str:
    """The text between the user's and an answer without thoughts."""
    answer = {"role": "assistant", "content": _ANSWER}
    return _after_user(render, kwargs, [answer]).partition(_ANSWER)[0]


def _after_user(render: Render, kwargs: Mapping[str, Any], more: list[dict[str, str]]) -> str:
    """The rest of a conversation after the user's text; empty if the template fails."""
    try:
        text = render([{"role": "user", "content": _USER}, *more], False, **kwargs)
    except Exception:  # a template is a program: it can fail in any way
        return ""
    return text.rpartition(_USER)[2]
