"""Paired comparison of a model with its base: the change on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from safesteer.evaluate.refusals import outcome
from safesteer.evaluate.statistics import paired_difference

Row = Mapping[str, Any]
# Entries that differ in one of these were measured differently and are not compared.
_SAME = ("metric", "judge", "kind", "source", "harness", "against")


def paired_change(
    entry: Mapping[str, Any],
    rows: Sequence[Row],
    base_entry: Mapping[str, Any] | None,
    base_rows: Sequence[Row],
) -> dict[str, Any] | None:
    """Compare a model's entry and rows of one benchmark with those of its base.

    Returns:
        {"value", "ci95", "p", "n", "words"} of the mean difference; None where the base did not
        answer all of these prompts, or was measured differently.
    """
    if base_entry is None or any(entry.get(key) != base_entry.get(key) for key in _SAME):
        return None
    base_by_prompt = {(row["id"], row["prompt"]): row for row in base_rows}
    before, after = [], []
    for row in rows:
        base_row = base_by_prompt.get((row["id"], row["prompt"]))
        if base_row is None:
            return None
        values = _value(base_row, base_entry), _value(row, entry)
        if values[0] is not None and values[1] is not None:
            before.append(values[0])
            after.append(values[1])
    if not before:
        return None
    change = paired_difference(before, after)
    return {**asdict(change), "ci95": list(change.ci95), "words": change.words()}


def add_paired_changes(
    entries: Mapping[str, dict[str, Any]],
    rows: Mapping[str, Sequence[Row]],
    base_entries: Mapping[str, Mapping[str, Any]],
    base_rows: Mapping[str, Sequence[Row]],
) -> None:
    """Add ``versus_base`` to each of `entries` that is comparable with the base's, by benchmark."""
    for name, entry in entries.items():
        change = paired_change(entry, rows[name], base_entries.get(name), base_rows.get(name, []))
        if change is not None:
            entry["versus_base"] = change


def _value(row: Row, entry: Mapping[str, Any]) -> float | None:
    if entry["kind"] == "capability":
        return None if row["score"] is None else float(row["score"])
    value = outcome(row, entry["metric"], entry["judge"])
    return None if value is None else float(value)
