"""Prompts from the rows of a source: which columns mean what, and what is wrong with a bad row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safesteer.errors import InputError, nearest
from safesteer.prompts.readers import BUILTIN_PREFIX, Row, read_rows

# Searched in this order, in any case, when no column is named.
TEXT_COLUMNS = ("prompt", "instruction", "question", "goal", "behavior")
CONVERSATION_COLUMNS = ("messages", "conversation")
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Prompt:
    """A request to a chat model."""

    id: str  # unique within its source
    messages: tuple[dict[str, str], ...]  # {role, content}; the last one is the user's
    category: str = ""  # topic or hazard, where the source names one
    split: str = ""  # train, validation or test, where the source names one

    @property
    def text(self) -> str:
        """The user's last message."""
        return self.messages[-1]["content"]


def load_prompts(
    source: str | Path,
    *,
    column: str | None = None,
    limit: int | None = None,
    keep_duplicates: bool = False,
) -> list[Prompt]:
    """Load the prompts of `source`, in its order.

    Args:
        source: a .json file (a list of strings or objects), a .jsonl or .csv file, a hub data set
            ("owner/name" or "owner/name:config:split", either with "@revision"), or
            "builtin:harmful", "builtin:harmless", "builtin:borderline".
        column: column of the prompts, each a string or a list of {role, content}, of which
            trailing answers are dropped. By default the first one of `TEXT_COLUMNS` and
            `CONVERSATION_COLUMNS`; ignored for builtin sets.
        limit: load at most this many.
        keep_duplicates: keep rows that repeat an earlier prompt.

    Returns:
        The prompts, each with an id that is unique among them.

    Raises:
        InputError: the source or one of its rows cannot be read; the message names the place.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}. Try: 1 or more, or no limit for all prompts")
    if str(source).startswith(BUILTIN_PREFIX):
        column = None
    rows = read_rows(source, column)
    return prompts_of_rows(rows, source, column=column, keep_duplicates=keep_duplicates)[:limit]


def prompts_of_rows(
    rows: list[Row],
    source: str | Path,
    *,
    column: str | None = None,
    keep_duplicates: bool = False,
) -> list[Prompt]:
    """Make prompts of `rows`, which were read from `source`; see `load_prompts`."""
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    prompt_column = _find_prompt_column(columns, column, source)
    prompts: list[Prompt] = []
    seen: set[tuple[tuple[str, str], ...]] = set()
    used_ids: set[str] = set()
    for number, row in enumerate(rows, start=1):
        messages = _messages(row, prompt_column, f"{source}, {row.place}")
        key = tuple((message["role"], message["content"]) for message in messages)
        if key in seen and not keep_duplicates:
            continue
        seen.add(key)
        identifier = _optional(row, "id") or f"{_short_name(source)}-{number:04d}"
        while identifier in used_ids:  # samples are stored by id
            identifier += f"-{number}"
        used_ids.add(identifier)
        category, split = _optional(row, "category"), _optional(row, "split")
        prompts.append(Prompt(identifier, messages, category, split))
    return prompts


def _find_prompt_column(columns: list[str], named: str | None, source: str | Path) -> str:
    shown = ", ".join(f"{name!r:.60}" for name in columns[:12]) or "no columns"
    shown += ", ..." if len(columns) > 12 else ""
    if named is not None:
        if named in columns:
            return named
        raise InputError(
            f"{source} has no column {named!r}{nearest(named, columns)}; it has {shown}."
            " Try: another column"
        )
    by_lower_case = {name.lower(): name for name in reversed(columns)}
    for candidate in TEXT_COLUMNS + CONVERSATION_COLUMNS:
        if candidate in by_lower_case:
            return by_lower_case[candidate]
    close = (nearest(candidate, columns) for candidate in TEXT_COLUMNS)
    raise InputError(
        f"{source} has no column 'prompt'{next(filter(None, close), '')}; it has {shown}."
        " Try: name the column of the prompts"
    )


def _messages(row: Row, column: str, where: str) -> tuple[dict[str, str], ...]:
    value = row.values.get(column)
    if isinstance(value, list):
        messages = [_message(turn, column, where) for turn in value]
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages or messages[-1]["role"] != "user":
            raise InputError(
                f"{where}: the conversation in {column!r} does not end with a request of the user."
                " Try: a last message with the role user; answers after it are ignored"
            )
    elif column.lower() in CONVERSATION_COLUMNS:
        raise InputError(
            f"{where}: {column!r} must be a list of {{role, content}}. Try: a .json or .jsonl file"
            " for conversations"
        )
    elif isinstance(value, str):
        messages = [{"role": "user", "content": value}]
    else:
        found = "missing" if value is None else f"not a string ({value!r:.40})"
        raise InputError(f"{where}: the prompt in {column!r} is {found}. Try: a text")
    if not messages[-1]["content"].strip():
        raise InputError(
            f"{where}: the prompt in {column!r} is empty. Try: fill it in, or delete the row"
        )
    for message in messages:
        # Half a surrogate pair ("\\ud83d" in JSON) is a str that no tokenizer can encode.
        if any("\ud800" <= character <= "\udfff" for character in message["content"]):
            raise InputError(
                f"{where}: the prompt in {column!r} contains half a character (a lone surrogate)."
                " Try: write the file again as UTF-8"
            )
    return tuple(messages)


def _message(turn: object, column: str, where: str) -> dict[str, str]:
    role = turn.get("role") if isinstance(turn, dict) else None
    content = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise InputError(
            f"{where}: a message in {column!r} is not an object with the strings role and content."
            ' Try: {"role": "user", "content": "..."}'
        )
    if role not in ROLES:
        raise InputError(
            f"{where}: unknown role {role!r} in {column!r}{nearest(role, ROLES)}."
            f" Try: {', '.join(ROLES)}"
        )
    return {"role": role, "content": content}


def _optional(row: Row, column: str) -> str:
    """The text of an optional column, whose name is matched in any case; "" without it."""
    for name, value in row.values.items():
        if name.lower() == column and value is not None:
            return str(value).strip()
    return ""


def _short_name(source: str | Path) -> str:
    """ "advbench" for data/advbench.csv, walledai/AdvBench:default:train and the like."""
    last = str(source).replace("\\", "/").rsplit("/", 1)[-1]
    return last.removeprefix(BUILTIN_PREFIX).split(":")[0].rsplit(".", 1)[0].lower()
