"""Rows of a source, each with its place, and the share of bad rows that a source may have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from safesteer.errors import InputError

# The prompt sets of a run, in the order in which results show them.
PROMPT_SETS = ("harmful", "harmless", "borderline")
# Names of the column with the prompts, in any case, searched in this order.
TEXT_COLUMNS = ("prompt", "instruction", "question", "goal", "behavior")
CONVERSATION_COLUMNS = ("messages", "conversation", "conversations", "contents")
OTHER_COLUMNS = (
    "forbidden_prompt",  # StrongREJECT
    "user_input",  # ToxicChat
    "user_prompt",
    "prompt_text",
    "prompts",
    "query",
    "request",
    "problem",
    "turns",  # SORRY-Bench
    "adversarial",  # WildJailbreak; empty in its rows of plain requests
    "vanilla",
    "text",
    "input",
    "user",
    "human",
    "chosen",  # of a preference data set without a prompt
    "transcript",
)
PROMPT_COLUMNS = TEXT_COLUMNS + CONVERSATION_COLUMNS + OTHER_COLUMNS
MAXIMUM_BAD_SHARE = 0.05  # one bad row is always allowed
_PLACES = 3  # rows named for each reason


@dataclass(frozen=True)
class Row:
    """One row of a source."""

    place: str  # "line 3" or "row 3", counted from 1, for messages
    values: dict[str, object]  # {column: value}
    fault: Skipped | None = None  # why the row could not be read; it has no values then


@dataclass(frozen=True)
class Table:
    """The rows of a source."""

    source: str
    rows: list[Row]
    notes: tuple[str, ...] = ()  # what a person should know about how they were read

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in their order."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    def complete(self) -> list[Row]:
        """The rows; raises InputError for the first one that could not be read."""
        for row in self.rows:
            if row.fault is not None:
                raise InputError(f"{self.source}, {row.place}: {row.fault}")
        return self.rows


class Skipped(Exception):
    """Why a row gives no prompt.

    Args:
        reason: names the group of such rows in a count, as in "3 empty".
        detail: what is wrong with this one; for a bad row.
        hint: what to try.
    """

    def __init__(self, reason: str, detail: str = "", hint: str = "") -> None:
        super().__init__(f"{detail or reason}. Try: {hint}" if hint else detail or reason)
        self.reason, self.detail, self.hint = reason, detail, hint

    @property
    def is_bad(self) -> bool:
        """Whether the row is empty or damaged, and not one that is left out for what it holds."""
        return bool(self.detail)


@dataclass
class Tally:
    """The count of a load: rows, prompts, and the reason for each other row."""

    table: Table
    kept: int = 0
    joined: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # {column: rows}
    noted: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # {note: rows}
    skipped: list[tuple[Row, Skipped]] = field(default_factory=list)

    def count(self, joined: Iterable[str], note: str) -> None:
        """Count a prompt, the columns joined to it, and what was left out of its row."""
        self.kept += 1
        for name in joined:
            self.joined[name] += 1
        if note:
            self.noted[note] += 1

    def skip(self, row: Row, why: Skipped) -> None:
        """Count a row that gives no prompt."""
        self.skipped.append((row, why))

    def check(self) -> None:
        """Raise InputError where too many rows are bad, or none is left."""
        rows = len(self.table.rows)
        bad = [(row, why) for row, why in self.skipped if why.is_bad]
        if len(bad) > max(1, MAXIMUM_BAD_SHARE * rows) or len(bad) == rows:
            hint = bad[0][1].hint or "correct or delete them"
            places: dict[str, list[str]] = defaultdict(list)
            for row, why in bad:
                places[why.detail].append(row.place)
            details = [f"{_places(p)}: {detail}" for detail, p in places.items()]
            shown = "; ".join(details[:_PLACES]) + "; ..." * (len(details) > _PLACES)
            if len(bad) == rows == 1:
                raise InputError(f"{self.table.source}, {shown}. Try: {hint}")
            raise InputError(
                f"{self.table.source}: {len(bad)} of {rows} rows are empty or damaged, more than"
                f" the {MAXIMUM_BAD_SHARE:.0%} that are skipped: {shown}. Try: {hint}"
            )
        if not self.kept:
            hints = dict.fromkeys(why.hint for _, why in self.skipped if why.hint)
            raise InputError(
                f"{self.table.source}: none of its {_count(rows, 'row')} can be used:"
                f" {self._reasons()}. Try: {next(iter(hints), 'another file')}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether every row was read in full, without a guess."""
        return not (self.skipped or self.noted or self.table.notes)

    def line(self, note: str = "") -> str:
        """One line: rows read, prompts kept, why each other row was not, and a last `note`."""
        rows = _count(len(self.table.rows), "row")
        parts = [f"{self.table.source}: {rows}, {_count(self.kept, 'prompt')}"]
        if self.skipped:
            parts.append(f"skipped {self._reasons()}")
        parts += [f"{name!r} joined in {number}" for name, number in self.joined.items()]
        parts += [f"{text} in {number}" for text, number in self.noted.items()]
        return "; ".join([*parts, *self.table.notes, *filter(None, [note])])

    def _reasons(self) -> str:
        places: dict[str, list[str]] = defaultdict(list)
        for row, why in self.skipped:
            places[why.reason].append(row.place)
        return ", ".join(f"{len(p)} {reason} ({_places(p)})" for reason, p in places.items())


def _places(places: list[str]) -> str:
    """ "lines 3, 9, 12, ..." """
    word = places[0].split()[0] + "s" * (len(places) > 1)
    numbers = [place.split()[-1] for place in places[:_PLACES]]
    return f"{word} {', '.join(numbers)}" + ", ..." * (len(places) > _PLACES)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def known_column(columns: Iterable[str]) -> str | None:
    """The column that holds the prompts, by its name; None without one."""
    by_lower_case = {name.lower().strip(): name for name in reversed(list(columns))}
    return next((by_lower_case[name] for name in PROMPT_COLUMNS if name in by_lower_case), None)
