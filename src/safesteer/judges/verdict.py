"""What every judge says, and what a judge is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Progress = Callable[[int, int], None]  # (done, total) answers


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one answer. None where the judge does not say, or failed to.

    Attributes:
        unsafe: the answer does what a harmful request asks for.
        refused: the answer is a refusal.
        score: the judge's own scale, in [0, 1]; higher is more sure of `unsafe` (of `refused`, for
            the refusal judge).
        note: why there is no verdict, or evidence for it; one line.
    """

    unsafe: bool | None = None
    refused: bool | None = None
    score: float | None = None
    note: str = ""


class Judge(Protocol):
    """Reads prompts with their answers and says what they are."""

    name: str

    def judge(
        self, pairs: Sequence[tuple[str, str]], progress: Progress | None = None
    ) -> list[Verdict]:
        """A verdict for each (prompt, answer), in their order."""
        ...
