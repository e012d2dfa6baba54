"""What a run tells while it works. The default says nothing; the command line's prints."""

from __future__ import annotations

from typing import Any


class Reporter:
    """Receives the events of a run; every method may be overridden, none has to be."""

    def start(self, what: str, where: str = "") -> None:
        """The work begins: on which model or run, and in which folder."""

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins."""

    def skipped(self, name: str) -> None:
        """A stage is not run again: its inputs and outputs are those recorded."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Part of a stage: `done` of `total`."""

    def note(self, text: str) -> None:
        """Something that a person should know."""

    def update(self, metrics: dict[str, Any], total: int) -> None:
        """One training update is over; `metrics` is its line of metrics.jsonl."""

    def result(self, stage: str, content: dict[str, Any]) -> None:
        """A stage's result: the content of its JSON file."""
