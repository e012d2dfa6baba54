"""Columns that a prompt needs beside it: joined to it, or the row is skipped."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

from safesteer.prompts.messages import (
    Messages,
    decoded,
    find_request,
    is_missing,
    parse_prompt,
    request_of,
)
from safesteer.prompts.rows import CONVERSATION_COLUMNS, Skipped

# Columns in lower case without "_" and spaces. These go before the prompt, with the text between
# them and it; HarmBench's as in its own code.
_BEFORE = {
    "contextstring": "\n\n---\n\n",
    "context": "\n\n",
    "passage": "\n\n",
    "paragraph": "\n\n",
    "article": "\n\n",
    "document": "\n\n",
    "story": "\n\n",
}
_INPUT = "input"  # Alpaca's
_CHOICES = ("choices", "options")
_LETTERS = ("a", "b", "c", "d")  # columns of MMLU's own files
_SYSTEM = ("system", "systemprompt", "systemmessage")
_HISTORY = ("history", "chathistory", "conversationhistory")
# Training texts with their answers.
_RENDERED = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]"
    r"|### ?(Response|Assistant|Output):|<\|(user|assistant)\|>"
)
_TOOLS = ("tools", "functions")
_MEDIA = {"image": "a picture", "video": "a video", "audio": "sound"}  # {start of a column: what}


def read_prompt(
    values: Mapping[str, object], column: str, *, named: bool
) -> tuple[Messages, list[str], str]:
    """The messages of a row, the columns joined to its prompt, and a note on what was left out.

    Args:
        values: {column: cell}.
        column: of the prompt.
        named: whether the user named the column; a conversation beside it is not looked at then.

    Raises:
        Skipped: the row holds no prompt, or one that text cannot render.
    """
    cells = {_plain(name): value for name, value in values.items()}
    own = _plain(column)
    value = values.get(column)
    if own == "adversarial" and not named and is_missing(value):  # WildJailbreak's plain requests
        value = cells.get("vanilla", value)
    if own == "text" and not named and isinstance(value, str) and _RENDERED.search(value):
        raise Skipped("rendered with a chat template", hint="--column text to ask them as they are")
    messages, note = parse_prompt(value, column)
    others = {n: c for n, c in cells.items() if n != own and not is_missing(c)}
    for start, what in _MEDIA.items():
        cells_of = (cell for name, cell in others.items() if name.startswith(start))
        if not all(isinstance(cell, bool | int | float) for cell in cells_of):  # counts, flags
            raise Skipped(f"with {what}", hint="rows of text alone")
    for name in _TOOLS:
        if not is_missing(cell := decoded(others.get(name))) and isinstance(cell, list | dict):
            raise Skipped("asking with tools", hint="rows without tools")
    joined: list[str] = []
    if not isinstance(value, list) or len(messages) == 1:
        messages = [*messages[:-1], _with_fields(messages[-1], others, joined)]
        if not joined and not named and own not in CONVERSATION_COLUMNS:
            messages = _conversation_beside(messages, others, column, joined)
    messages = _with_history(messages, others, joined)
    system = next((name for name in _SYSTEM if name in others), None)
    if system is not None and messages[0]["role"] != "system":
        content = others[system]
        if not isinstance(content, str):
            raise Skipped(f"whose {system!r} is not a text", hint=f"a text in {system!r}")
        messages = [{"role": "system", "content": content}, *messages]
        joined.append(system)
    shown = {_plain(name): name for name in values}
    return messages, [shown.get(name, name) for name in joined], note


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "")


def _with_fields(
    message: dict[str, str], others: Mapping[str, object], joined: list[str]
) -> dict[str, str]:
    text = message["content"]
    for name, between in _BEFORE.items():
        if name in others and (before := _text(others[name], name)) not in text:
            text = before + between + text
            joined.append(name)
    said = others.get(_INPUT)
    if isinstance(said, str) and said.strip().lower() in ("<noinput>", "no input"):
        said = None
    if said is not None and (after := _text(said, _INPUT)) not in text:
        if message["content"] in after:  # the prompt once more, as a model was asked it
            after = ""
        else:
            text += "\n\n" + after
            joined.append(_INPUT)
    for name in _CHOICES:
        if not isinstance(others.get(name), int | float | None):  # else how many there are
            text += "\n\n" + _choices(others[name], name)
            joined.append(name)
    if all(isinstance(others.get(letter), str) for letter in _LETTERS):
        text += "\n\n" + _choices([others[letter] for letter in _LETTERS], "A")
        joined.append("A, B, C, D")
    return {**message, "content": text}


def _text(value: object, name: str) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if isinstance(value, str | int | float):
        return str(value)
    raise Skipped(f"whose {name!r} is not a text", hint=f"a text in {name!r}")


def _choices(value: object, name: str) -> str:
    """Choices as lines "A. ...", from the forms of MMLU, ARC and others."""
    value = decoded(value)
    if isinstance(value, str):
        return value
    labels: list[object] = list(string.ascii_uppercase)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        labels, value = value.get("label") or labels, value["text"]
    elif isinstance(value, Mapping):
        labels, value = list(value), list(value.values())
    elif isinstance(value, list) and all(isinstance(v, Mapping) and "text" in v for v in value):
        labels = [v.get("label", letter) for v, letter in zip(value, labels, strict=False)]
        value = [v["text"] for v in value]
    if not isinstance(value, list) or any(not isinstance(v, str | int | float) for v in value):
        raise Skipped(f"whose {name!r} are not texts", hint=f"a list of texts in {name!r}")
    return "\n".join(f"{label}. {text}" for label, text in zip(labels, value, strict=False))


def _conversation_beside(
    messages: Messages, others: Mapping[str, object], column: str, joined: list[str]
) -> Messages:
    """The conversation that leads to the prompt, where the row also has one."""
    name = next((name for name in CONVERSATION_COLUMNS if name in others), None)
    turns = decoded(others[name]) if name is not None else None
    if name is None or not isinstance(turns, list):
        return messages
    found = find_request(turns, messages[-1]["content"], name)
    if found is None:
        raise Skipped(
            f"whose {name!r} do not contain their {column!r}",
            hint=f"--column {column} or --column {name}, which says what to read",
        )
    if len(found) > 1:
        joined.append(name)
    return found


def _with_history(messages: Messages, others: Mapping[str, object], joined: list[str]) -> Messages:
    """The messages after the earlier turns: pairs of request and answer, or messages."""
    name = next((name for name in _HISTORY if name in others), None)
    if name is None:
        return messages
    turns = decoded(others[name])
    if isinstance(turns, list) and all(isinstance(t, list) and len(t) == 2 for t in turns):
        turns = [
            {"role": role, "content": text}
            for pair in turns
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    if not isinstance(turns, list):
        raise Skipped(f"whose {name!r} is not a conversation", hint=f"rows without {name!r}")
    leading = 1 if messages[0]["role"] == "system" else 0
    earlier = request_of([*turns, {"role": "user", "content": messages[-1]["content"]}], name)
    joined.append(name)
    return [*messages[:leading], *earlier[:-1], *messages[leading:]]
