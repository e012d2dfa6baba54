"""Rows of the training set as token ids, as the student and the teacher read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from safesteer.models.chat import ChatRenderer
from safesteer.teacher import Teacher


class Row(NamedTuple):
    """A prompt ready to be answered.

    Attributes:
        student_ids: token ids that the student reads before its answer, a prefill included.
        teacher_ids: what the teacher reads in their place.
        anchor: whether the plain base teaches here.
        prefilled: whether the answer has a prefill.
    """

    student_ids: list[int]
    teacher_ids: list[int]
    anchor: bool
    prefilled: bool


class RowTokenizer:
    """Tokenize rows of the training set; each different row is rendered once.

    Args:
        chat: renders chat messages.
        teacher: adds its context to the prompts that are no anchors.
    """

    def __init__(self, chat: ChatRenderer, teacher: Teacher) -> None:
        self.chat = chat
        self.teacher = teacher
        self._rows: dict[str, Row] = {}

    def __call__(self, row: Mapping[str, Any]) -> Row:
        """Tokenize {"prompt": chat messages, "prefill": str = "", "anchor": bool = False}."""
        prompt, prefill = row["prompt"], row.get("prefill") or ""
        anchor = bool(row.get("anchor", False))
        key = json.dumps([prompt, prefill, anchor])
        if key not in self._rows:
            ids = taught = self.chat.ids(prompt, prefill)
            if self.teacher.context and not anchor:
                taught = self.chat.ids(self.teacher.messages(prompt, prefill), prefill)
            self._rows[key] = Row(ids, taught, anchor, bool(prefill))
        return self._rows[key]
