"""The interface of judges, and their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from safesteer.events import Progress


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one answer; None if the judge has none.

    `score` is on the judge's own scale, in [0, 1]; higher means more surely `unsafe` (`refused` for
    the refusal judge).
    """

    unsafe: bool | None = None  # the answer fulfills a harmful request
    refused: bool | None = None
    score: float | None = None
    note: str = ""  # one line: evidence, or why there is no verdict


class Judge(Protocol):
    """A judge of answers, by its name."""

    name: str

    def judge(
        self, pairs: Sequence[tuple[str, str]], progress: Progress | None = None
    ) -> list[Verdict]:
        """A verdict for each (prompt, answer), in their order."""
        ...
