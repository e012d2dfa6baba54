"""Before and after on the same prompts: a model's answers against its base's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safesteer.evaluate.refusals import counted
from safesteer.evaluate.statistics import paired_difference

Row = Mapping[str, Any]
# Entries that differ in one of these were not measured alike.
_ALIKE = ("metric", "judge", "kind", "source", "harness", "against")


def versus_base(
    entry: Mapping[str, Any],
    rows: Sequence[Row],
    base_entry: Mapping[str, Any] | None,
    base_rows: Sequence[Row],
) -> dict[str, Any] | None:
    """{"value", "ci95", "p", "n", "words"} of the difference to the base, prompt by prompt.

    Entries are those of eval/MODEL.json, rows those of eval/samples. None where the base was not
    asked all of these prompts, or was judged or scored otherwise.
    """
    if base_entry is None or any(entry.get(key) != base_entry.get(key) for key in _ALIKE):
        return None
    earlier = {(row["id"], row["prompt"]): row for row in base_rows}
    before, after = [], []
    for row in rows:
        base_row = earlier.get((row["id"], row["prompt"]))
        if base_row is None:
            return None
        values = _outcome(base_row, base_entry), _outcome(row, entry)
        if values[0] is not None and values[1] is not None:
            before.append(values[0])
            after.append(values[1])
    if not before:
        return None
    found = paired_difference(before, after)
    return {
        "value": found.value,
        "ci95": list(found.ci95),
        "p": found.p,
        "n": found.n,
        "words": found.words(),
    }


def compare_with_base(
    entries: Mapping[str, dict[str, Any]],
    rows: Mapping[str, Sequence[Row]],
    base_entries: Mapping[str, Mapping[str, Any]],
    base_rows: Mapping[str, Sequence[Row]],
) -> None:
    """Add ``versus_base`` to every entry, by benchmark, that can be compared with the base's."""
    for key, entry in entries.items():
        versus = versus_base(entry, rows[key], base_entries.get(key), base_rows.get(key, []))
        if versus is not None:
            entry["versus_base"] = versus


def _outcome(row: Row, entry: Mapping[str, Any]) -> float | None:
    if entry["kind"] == "capability":
        return None if row["score"] is None else float(row["score"])
    value = counted(row, entry["metric"], entry["judge"])
    return None if value is None else float(value)
