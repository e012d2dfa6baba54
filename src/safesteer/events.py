"""Progress events of a run. The base class ignores them; the command line prints them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]  # (done, total)


class Reporter:
    """Receiver of a run's events. Override any of its methods."""

    def start(self, what: str, where: str = "") -> None:
        """Work on the model or run `what` starts, in the folder `where`."""

    def stage(self, name: str, detail: str = "") -> None:
        """The stage `name` starts, or a part of it that `detail` describes."""

    def skipped(self, name: str) -> None:
        """The stage `name` is skipped: its recorded inputs and outputs are unchanged."""

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` units of `what`, a part of a stage, are finished."""

    def note(self, text: str) -> None:
        """Something that a person should know."""

    def training_step(self, metrics: dict[str, Any], total: int) -> None:
        """A training step of `total` is finished; `metrics` is its line of metrics.jsonl."""

    def result(self, stage: str, content: dict[str, Any]) -> None:
        """A stage is finished; `content` is that of its JSON file."""
