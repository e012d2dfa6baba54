"""Prompts from the rows of a source: which columns mean what, and what became of every row."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from safesteer.errors import InputError, nearest
from safesteer.prompts.fields import read_prompt
from safesteer.prompts.labels import Labels
from safesteer.prompts.readers import BUILTIN_PREFIX, read_table
from safesteer.prompts.rows import TEXT_COLUMNS, Row, Skipped, Table, Tally, known_column

_log = logging.getLogger(__name__)


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
    name: str | None = None,
) -> list[Prompt]:
    """Load the prompts of `source`, in its order.

    One line is logged: rows read, prompts kept, and why each other row was not. It is a warning
    where a row was skipped or something was guessed.

    Args:
        source: a file (docs/prompts.md lists the formats), a folder with one, a folder that
            `save_to_disk` wrote, a hub data set ("owner/name" or "owner/name:config:split", either
            with "@revision"), or "builtin:harmful", "builtin:harmless", "builtin:borderline",
            "builtin:borderline-large".
        column: column of the prompts, each a string or a list of {role, content}, of which
            trailing answers are dropped. By default the first one of `PROMPT_COLUMNS`; ignored for
            builtin sets.
        limit: load at most this many.
        keep_duplicates: keep rows that repeat an earlier prompt.
        name: harmful, harmless or borderline, for a prompt set: of a file with labels such as safe
            and unsafe, only its rows are taken.

    Returns:
        The prompts, each with an id that is unique among them.

    Raises:
        InputError: the source cannot be read, more than 5% of its rows are empty or damaged, or
            none gives a prompt; the message names the place.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}. Try: 1 or more, or no limit for all prompts")
    if str(source).startswith(BUILTIN_PREFIX):
        column = name = None
    table = read_table(source, column)
    return prompts_of_table(table, column=column, keep_duplicates=keep_duplicates, name=name)[
        :limit
    ]


def prompts_of_table(
    table: Table,
    *,
    column: str | None = None,
    keep_duplicates: bool = False,
    name: str | None = None,
) -> list[Prompt]:
    """Make prompts of the rows of `table`; see `load_prompts`."""
    tally = Tally(table)
    prompt_column = _find_prompt_column(table, column, of_set=name is not None)
    labels = Labels(table, name, prompt_column) if name else None
    prompts: list[Prompt] = []
    seen: set[tuple[tuple[str, str], ...]] = set()
    used_ids: set[str] = set()
    for number, row in enumerate(table.rows, start=1):
        try:
            if row.fault is not None:
                raise row.fault
            if labels is not None:
                labels.check(row)
            messages, joined, note = read_prompt(
                row.values, prompt_column, named=column is not None
            )
            key = tuple((message["role"], message["content"]) for message in messages)
            if key in seen and not keep_duplicates:
                raise Skipped("repeated")
        except Skipped as why:
            tally.skip(row, why)
            continue
        seen.add(key)
        tally.count(joined, note)
        identifier = _optional(row, "id") or f"{_short_name(table.source)}-{number:04d}"
        while identifier in used_ids:  # samples are stored by id
            identifier += f"-{number}"
        used_ids.add(identifier)
        category, split = _optional(row, "category"), _optional(row, "split")
        prompts.append(Prompt(identifier, tuple(messages), category, split))
    tally.check()
    if not table.source.startswith(BUILTIN_PREFIX):
        note = labels.note if labels else ""
        level = logging.INFO if tally.is_plain and not note else logging.WARNING
        _log.log(level, "%s", tally.line(note))
    return prompts


@contextmanager
def unlogged() -> Iterator[None]:
    """Load prompts again without the line that the first load has logged."""
    before, _log.disabled = _log.disabled, True
    try:
        yield
    finally:
        _log.disabled = before


def _find_prompt_column(table: Table, named: str | None, *, of_set: bool) -> str:
    columns, source = table.columns, table.source
    shown = ", ".join(f"{name!r:.60}" for name in columns[:12]) or "no columns"
    shown += ", ..." if len(columns) > 12 else ""
    if named is not None:
        if named in columns or not columns:
            return named
        raise InputError(
            f"{source} has no column {named!r}{nearest(named, columns)}; it has {shown}."
            " Try: another column" + ", or one per set: harmful=NAME,harmless=NAME" * of_set
        )
    if all(row.fault is not None for row in table.rows):
        return "prompt"  # the faults are reported, not the lack of columns
    if (found := known_column(columns)) is not None:
        return found
    names = [name for name in columns if re.fullmatch(r"[\w.-]{1,40}", name)]
    similar = [name for name in names if get_close_matches(name.lower(), TEXT_COLUMNS, 1, 0.75)]
    close = next(filter(None, (nearest(known, similar) for known in TEXT_COLUMNS)), "")
    hint = "--column NAME, with the name of the prompts' column"
    if len(names) < len([name for name in columns if name]):
        hint = "a first line with the names of the columns, or a .txt file with a prompt per line"
    raise InputError(f"{source} has no column 'prompt'{close}; it has {shown}. Try: {hint}")


def _optional(row: Row, column: str) -> str:
    """The text of an optional column, whose name is matched in any case; "" without it."""
    for name, value in row.values.items():
        if name.lower() == column and value is not None and value == value:  # not NaN
            return str(value).strip()
    return ""


def _short_name(source: str) -> str:
    """ "advbench" for data/advbench.csv, walledai/AdvBench:default:train and the like."""
    last = source.replace("\\", "/").rsplit("/", 1)[-1]
    stem = last.removeprefix(BUILTIN_PREFIX).split(":")[0].removesuffix(".gz")
    return stem.rsplit(".", 1)[0].lower()
