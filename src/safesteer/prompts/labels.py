"""Labels: files that hold harmful and harmless prompts, and the ones that a prompt set takes."""

from __future__ import annotations

import re
from collections import defaultdict

from safesteer.errors import InputError
from safesteer.prompts.messages import is_missing
from safesteer.prompts.rows import Row, Skipped, Table

# Words of labels, "_" and "-" as spaces.
_HARMFUL = frozenset(
    (
        "unsafe",
        "harmful",
        "harm",
        "toxic",
        "malicious",
        "dangerous",
        "jailbreak",
        "attack",
        "vanilla harmful",
        "adversarial harmful",
    )
)
_HARMLESS = frozenset(
    (
        "safe",
        "harmless",
        "benign",
        "unharmful",
        "not harmful",
        "non harmful",
        "no harm",
        "non toxic",
        "nontoxic",
        "not toxic",
        "vanilla benign",
        "adversarial benign",
    )
)
# These stand in no list of topics: beside them every other value is a label too.
_CLEARLY_LABELS = frozenset(("safe", "unsafe", "harmless", "benign", "unharmful"))
_FLAGS = {  # {column of yes and no: whether yes means harmful}
    "is_safe": False,
    "safe": False,
    "unsafe": True,
    "is_unsafe": True,
    "harmful": True,
    "is_harmful": True,
    "malicious": True,
    "toxic": True,
    "is_toxic": True,
    "toxicity": True,
}
_UNCLEAR = ("label", "labels", "class")
_LONGEST = 40  # characters of a label
_YES, _NO = frozenset(("1", "1.0", "true", "yes")), frozenset(("0", "0.0", "false", "no"))
_ANSWERS = ("response", "answer", "completion", "output", "chosen", "rejected")


class Labels:
    """The label of each row of a table.

    Args:
        table: the rows.
        name: the prompt set that they are for: harmful, harmless or borderline.
        prompts: the column of the prompts.

    Raises:
        InputError: a label has two values, and which of them is harmful is unknown.
    """

    def __init__(self, table: Table, name: str, prompts: str) -> None:
        self.name, self.column, self.note = name, "", ""
        self._kinds: dict[str, bool] = {}  # {value: whether it means harmful}
        answered = any(map(_is_of_answer, table.columns))
        unclear = ""
        for column in table.columns:
            if _is_of_answer(column) or self.column:
                continue
            values = {_value(row, column) for row in table.rows} - {""}
            kinds = _kinds(column, values)
            zero_or_one = column.lower() in _UNCLEAR and len(values) == 2 and values <= _YES | _NO
            if answered and (zero_or_one or (kinds and _varies(table, column, prompts))):
                self.note = f"{column!r} is taken for a label of the answers"
            elif kinds:
                self.column, self._kinds = column, kinds
            elif zero_or_one:
                unclear = column
        if unclear and not self.column:
            raise InputError(
                f"{table.source}: {unclear!r} is 0 or 1, and nothing says which of them is harmful."
                f" Try: one file with the harmful prompts and one with the others, or safe and"
                f" unsafe in {unclear!r}"
            )

    def check(self, row: Row) -> None:
        """Raise Skipped for a row that the prompt set does not take."""
        if not self.column:
            return
        value = _value(row, self.column)
        harmful = self._kinds.get(value)
        if harmful is None or harmful != (self.name == "harmful"):
            shown = f"with {self.column} = {value}" if value else f"without {self.column!r}"
            raise Skipped(shown, hint=f"another file for --{self.name}")


def _kinds(column: str, values: set[str]) -> dict[str, bool]:
    words = values & (_HARMFUL | _HARMLESS)
    both = words & _HARMFUL and words & _HARMLESS
    if words and (both or words & _CLEARLY_LABELS or words == values):
        return {value: value in _HARMFUL for value in words}
    yes_is_harmful = _FLAGS.get(column.lower())
    if values and yes_is_harmful is not None and values <= _YES | _NO:
        return {value: (value in _YES) == yes_is_harmful for value in values}
    return {}


def _varies(table: Table, column: str, prompts: str) -> bool:
    """Whether one prompt has several labels, so that they are labels of its answers."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in table.rows:
        if not is_missing(row.values.get(prompts)):
            labels[repr(row.values[prompts])].add(_value(row, column))
    return any(len(found) > 1 for found in labels.values())


def _value(row: Row, column: str) -> str:
    """A cell as a label, in lower case; "" without one. Long texts are cut: they are none."""
    value = row.values.get(column)
    return (
        ""
        if is_missing(value)
        else " ".join(re.split(r"[\s_-]+", str(value)[:_LONGEST].strip().lower()))
    )


def _is_of_answer(column: str) -> bool:
    return any(word in column.lower() for word in _ANSWERS)
