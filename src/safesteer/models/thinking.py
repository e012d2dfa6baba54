"""Models that think before they answer: how a chat template opens and closes the thinking block.

Found by rendering small conversations and looking at what the template writes, so that no model's
name is needed (docs/thinking.md). Knows nothing of models and tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Render = Callable[..., str]  # (messages, generation prompt, **template arguments) -> text

# Arguments by which templates are told to let the model think; true asks for thinking here, also
# where the template itself does not read the argument.
SWITCHES = ("enable_thinking", "thinking")
# Keys under which a message may carry its thinking.
_FIELDS = ("reasoning_content", "reasoning", "thinking")
# Private-use characters: they occur in no template and survive its trimming.
_USER, _ANSWER, _THOUGHT = "\ue000", "\ue001", "\ue002"
_TAG = re.compile(r"(?:<(\w+)>|\[(\w+)\])\s*$")
_EMPTY = re.compile(r"(?:<(\w+)>\s*</\1>|\[(\w+)\]\s*\[/\2\])\s*$")


@dataclass(frozen=True)
class Thinking:
    """The thinking block of a template, and what is done about it.

    Attributes:
        opening: what stands before the thoughts, white space included.
        closing: what stands between the thoughts and the answer.
        on: whether the model is let think; if not, its prompts end in a closed, empty block.
        template_kwargs: the template's arguments for that.
        close: what closes the block, empty, at the end of a prompt; "" where the template does.
        inside: whether a prompt of the template already opens the block.
    """

    opening: str
    closing: str
    on: bool
    template_kwargs: dict[str, Any]
    close: str
    inside: bool

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest of a run says about it."""
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
    """What the template says of thinking; None where it says nothing.

    A model that thinks is not let do so unless one of `SWITCHES` is true in `template_kwargs`.
    `source`: the template's own text and the tokenizer's added tokens.
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
        close = answered[len(prompt) :]  # the template's own way to an answer without thoughts
    else:
        # Whether the model thinks by itself is not to be seen: only where the user says so.
        close = opening + closing if on else ""
    return Thinking(opening, closing, on, kwargs, close, inside)


def _block(render: Render, kwargs: Mapping[str, Any], source: str) -> tuple[str, str] | None:
    """(opening, closing) of the thinking block, white space included; None if there is none."""
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
        # A tag that stands before answers without thoughts too is the answer's own.
        if two in source and (pattern is _EMPTY or prompt != _before_answer(render, kwargs)):
            return one + "\n", "\n" + two + "\n\n"
    return None


def _prompt(render: Render, kwargs: Mapping[str, Any]) -> str:
    """What stands after the user's text where the model is to go on."""
    text = render([{"role": "user", "content": _USER}], True, **kwargs)
    return text.rpartition(_USER)[2]


def _before_answer(render: Render, kwargs: Mapping[str, Any]) -> str:
    """What stands between the user's text and an answer without thoughts."""
    answer = {"role": "assistant", "content": _ANSWER}
    return _after_user(render, kwargs, [answer]).partition(_ANSWER)[0]


def _after_user(render: Render, kwargs: Mapping[str, Any], more: list[dict[str, str]]) -> str:
    """The rest of a conversation after the user's text; "" where the template fails."""
    try:
        text = render([{"role": "user", "content": _USER}, *more], False, **kwargs)
    except Exception:  # a template is a program: it can fail in any way
        return ""
    return text.rpartition(_USER)[2]
