"""Rows of the training set as token ids, as the student and the teacher read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from safesteer.models.chat import ChatRenderer
from safesteer.teacher import Teacher


class Row(NamedTuple):
    """A prompt ready to be answered."""

    student_ids: list[int]  # what the student reads before its answer, a prefill included
    teacher_ids: list[int]  # what the teacher reads in its place
    anchor: bool  # whether the plain base teaches here
    prefilled: bool


def tokenize_row(chat: ChatRenderer, teacher: Teacher, row: Mapping[str, Any]) -> Row:
    """Tokenize {"prompt": chat messages, "prefill": str = "", "anchor": bool = False}."""
    prompt, prefill = row["prompt"], row.get("prefill") or ""
    anchor = bool(row.get("anchor"))
    taught = prompt if anchor else teacher.messages(prompt, prefill)
    return Row(chat.ids(prompt, prefill), chat.ids(taught, prefill), anchor, bool(prefill))
