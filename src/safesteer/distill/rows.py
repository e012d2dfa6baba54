"""Rows of the training set as token ids, as the student and the teacher read them.

A row carries one signed strength, which decides what teaches there:

    above 0   the safety teacher: steered so many times, its context read first
    0         the plain base (an anchor)
    below 0   the base steered away from refusal, for a prompt that it wrongly refuses
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from datasets import IterableDataset

from safesteer.errors import InputError
from safesteer.models.chat import ChatRenderer
from safesteer.teacher import Teacher


class Row(NamedTuple):
    """A prompt ready to be answered."""

    student_ids: list[int]  # what the student reads before its answer, a prefill included
    teacher_ids: list[int]  # what the teacher reads in its place
    strength: float  # how many times the teacher's direction is added
    prefilled: bool


def tokenize_row(chat: ChatRenderer, teacher: Teacher, row: Mapping[str, Any]) -> Row:
    """Tokenize {"prompt": chat messages, "prefill": "", "anchor": False, "strength": None}.

    Without a strength it is 0 for an anchor, and 1 for any other row.
    """
    prompt, prefill, strength = row["prompt"], row.get("prefill") or "", row.get("strength")
    if strength is None:
        strength = 0.0 if row.get("anchor") else 1.0
    taught = teacher.messages(prompt, prefill) if strength > 0 else prompt
    return Row(chat.ids(prompt, prefill), chat.ids(taught, prefill), strength, bool(prefill))


def check_strengths(dataset: Any) -> None:
    """Raise InputError for a training that repairs more prompts than it teaches to refuse.

    Steering away from refusal must not become a way to remove it, so this is no option.
    """
    if isinstance(dataset, IterableDataset):
        first: Mapping[str, Any] = next(iter(dataset), {})
        if first.get("strength") is not None:
            raise InputError(
                "the column strength needs a dataset with a length, whose prompts can be counted."
                " Try: a datasets.Dataset"
            )
        return
    if "strength" not in (getattr(dataset, "column_names", None) or ()):
        return
    signs: dict[bool, set[str]] = {True: set(), False: set()}
    for row in dataset.select_columns(["prompt", "strength"]):
        if row["strength"]:
            signs[row["strength"] > 0].add(str(row["prompt"]))
    check_repairs(len(signs[False]), len(signs[True]))


def check_repairs(repaired: int, harmful: int) -> None:
    """Raise InputError where more prompts are repaired than there are harmful ones."""
    if repaired > harmful:
        raise InputError(
            f"{repaired} wrongly refused prompts would be repaired in a training with {harmful}"
            " harmful ones, and there must be at least as many of these. Try: more harmful prompts,"
            " a larger train.num_prompts, or train.wrong_refusals=keep"
        )
