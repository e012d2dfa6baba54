"""Conversations: the messages of a prompt from the formats in which people keep them."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Mapping

from safesteer.errors import nearest
from safesteer.prompts.rows import CONVERSATION_COLUMNS, Skipped

Messages = list[dict[str, str]]  # {role, content}

ROLES = ("system", "developer", "user", "assistant", "tool")
_ROLE_NAMES = {name: name for name in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "reasoning": "assistant",
    "function": "tool",
    "function_call": "tool",
    "observation": "tool",
    "ipython": "tool",
}
# How data frames and spreadsheets write a missing text.
_MISSING = frozenset(("nan", "null", "none", "na", "n/a", "<na>", "#n/a"))
_INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")  # categories: control, format (zero width), separators
# Fillers of Hangul and Braille, and selectors of variants.
_FILLERS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0") | {
    chr(code) for code in range(0xFE00, 0xFE10)
}
_PICTURE = "<image>"  # where a picture belongs, in the text of a request about it
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # the format of Anthropic's data


def is_blank(text: str) -> bool:
    """Whether nothing in `text` can be seen."""
    return all(unicodedata.category(c) in _INVISIBLE or c in _FILLERS for c in text)


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: null, NaN, an empty list, a blank text or "NaN"."""
    if isinstance(value, str):
        return is_blank(value) or value.strip().lower() in _MISSING
    return value is None or value != value or value in ([], {}, ())


def parse_prompt(value: object, column: str) -> tuple[Messages, str]:
    """The messages of a cell up to the user's last turn, and a note on what was left out.

    Raises:
        Skipped: the cell holds no request, or one that text cannot render.
    """
    note = ""
    if isinstance(value, str) and column.lower() in (*CONVERSATION_COLUMNS, "turns"):
        value = decoded(value)
        if isinstance(value, str) and column.lower() != "turns" and not is_missing(value):
            detail = f"{column!r} must be a list of {{role, content}}"
            raise _bad("not a conversation", detail, "a .json or .jsonl file for conversations")
    if isinstance(value, Mapping) and ("role" in value or "from" in value):  # a single message
        value = [value]
    if is_missing(value):
        missing = "missing" if value is None else "empty"
        raise _bad(
            "empty", f"the prompt in {column!r} is {missing}", "fill it in, or delete the row"
        )
    if isinstance(value, list) and isinstance(value[0], str):
        if column.lower() in CONVERSATION_COLUMNS:
            raise _not_a_message(column)
        note = "only the first of several turns is read" if len(value) > 1 else ""
        value = value[0]
    if isinstance(value, list):
        messages = request_of(value, column)
    elif isinstance(value, str):
        messages = _transcript(value) or [{"role": "user", "content": value}]
    else:
        detail = f"the prompt in {column!r} is not a string ({value!r:.40})"
        raise _bad("not a text", detail, "a text")
    if is_missing(messages[-1]["content"]):
        raise _bad("empty", f"the prompt in {column!r} is empty", "fill it in, or delete the row")
    try:
        "".join(message["content"] for message in messages).encode()
    except UnicodeEncodeError:  # half a surrogate pair ("\\ud83d" in JSON), for no tokenizer
        detail = f"the prompt in {column!r} contains half a character (a lone surrogate)"
        raise _bad("with half a character", detail, "write the file again as UTF-8") from None
    return messages, note


def request_of(turns: list[object], column: str) -> Messages:
    """The messages of a conversation up to the user's last turn; answers after it are ignored.

    Raises:
        Skipped: there is no request, or it follows on something that text cannot render.
    """
    roles = [_role(turn, column) for turn in turns]
    while roles and roles[-1] in ("assistant", "tool"):
        roles.pop()
    if not roles or roles[-1] != "user":
        detail = f"the conversation in {column!r} does not end with a request of the user"
        hint = "a last message with the role user; answers after it are ignored"
        raise _bad("without a request", detail, hint)
    kept = turns[: len(roles)]
    for role, turn in zip(roles, kept, strict=True):
        assert isinstance(turn, Mapping)
        if role == "tool" or turn.get("tool_calls") or turn.get("function_call"):
            raise Skipped("with tool calls before the request", hint="rows without tool calls")
    return [
        {"role": role, "content": _content(turn, column)}
        for role, turn in zip(roles, kept, strict=True)
    ]


def find_request(turns: list[object], text: str, column: str) -> Messages | None:
    """The messages of a conversation up to the turn of the user that says `text`."""
    for number, turn in enumerate(turns, start=1):
        if _role(turn, column) == "user" and _content(turn, column).strip() == text.strip():
            return request_of(turns[:number], column)
    return None


def _role(turn: object, column: str) -> str:
    named = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
    if not isinstance(named, str):
        raise _not_a_message(column)
    role = _ROLE_NAMES.get(named.strip().lower())
    if role is None:
        detail = f"unknown role {named!r} in {column!r}{nearest(named, ROLES)}"
        raise _bad("with an unknown role", detail, ", ".join(ROLES))
    return role


def _content(turn: object, column: str) -> str:
    assert isinstance(turn, Mapping)
    content = next(
        (turn[key] for key in ("content", "value", "text", "parts") if key in turn), None
    )
    if isinstance(content, str):
        if content.strip().startswith(_PICTURE) or content.strip().endswith(_PICTURE):
            raise Skipped("with a picture", hint="rows of text alone")
        return content
    if not isinstance(content, list):
        raise _not_a_message(column)
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part.get("text") if isinstance(part, Mapping) else part
        if "image" in str(kind):
            raise Skipped("with a picture", hint="rows of text alone")
        if not str(kind).endswith("text"):
            raise Skipped(f"with a part of the type {kind!r:.40}", hint="rows of text alone")
        if not isinstance(text, str):
            raise _not_a_message(column)
        texts.append(text)
    return "\n".join(texts)


def _transcript(text: str) -> Messages | None:
    """The request of a text with the turns "Human: ..." and "Assistant: ..."; else None."""
    parts = _TRANSCRIPT.split(text.strip())
    if parts[0].strip() or len(parts) < 5 or parts[1] != "Human":
        return None
    turns: list[object] = [
        {"from": speaker.replace("Assistant", "gpt"), "value": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return request_of(turns, "transcript")


def decoded(value: object) -> object:
    """A list or an object that a CSV file holds as JSON or as Python; other cells as they are."""
    if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            result: object = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return result
    return value


def _not_a_message(column: str) -> Skipped:
    detail = f"a message in {column!r} is not an object with the strings role and content"
    return _bad("not a conversation", detail, '{"role": "user", "content": "..."}')


def _bad(reason: str, detail: str, hint: str) -> Skipped:
    return Skipped(reason, detail, hint)
