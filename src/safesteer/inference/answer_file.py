"""A file of answers that is kept batch by batch, and finished by the same command when interrupted.

Until every prompt is answered, the answers are lines of FILE.partial: first the facts that must be
the same to resume, then one line per batch. FILE itself is only ever complete, in the order of the
prompts. Both can be read by their owner alone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from safesteer.errors import InputError
from safesteer.files import (
    PARTIAL,
    append_line,
    check_output,
    read_lines,
    write_error,
    write_jsonl,
)

_MARK = "unfinished answers of safesteer"  # first entry of the first line

Row = dict[str, Any]


class AnswerFile:
    """The answers to numbered prompts on their way into a file. No model is needed to make it.

    Args:
        path: the file; a pipe or a device gets all answers at the end.
        count: number of prompts.
        facts: what decides the answers, JSON values; unfinished answers of other facts are refused.
        force: replace another file at `path`, and unfinished answers of other facts.
        inputs: files that are never replaced.

    Raises:
        InputError: the file exists, cannot be written, or holds answers of other facts.
    """

    def __init__(
        self,
        path: Path,
        count: int,
        facts: Mapping[str, Any],
        *,
        force: bool = False,
        inputs: tuple[Path, ...] = (),
    ) -> None:
        check_output(path, "--output", force=force, inputs=inputs)
        self.path = path
        self._count = count
        self._facts = dict(facts)
        self._force = force
        place = path.resolve()
        regular = path.is_file() or not path.exists()
        self._partial = place.with_name(place.name + PARTIAL) if regular else None
        self._rows: dict[int, Row] = {}
        self._random: str | None = None
        self._found: Row | None = None  # facts of unfinished answers
        if self._partial is not None and self._partial.exists():
            self._read(self._partial)

    @property
    def missing(self) -> list[int]:
        """Numbers of the prompts without an answer."""
        return [number for number in range(self._count) if number not in self._rows]

    @property
    def date(self) -> datetime | None:
        """The time that the chat template read for the answers that are there, if it reads one."""
        date = (self._found or {}).get("date")
        return datetime.fromisoformat(date) if date else None

    def start(self, model: str, date: str | None = None) -> bool:
        """Begin with the model of this identity; returns whether answers are there already.

        `date` is what its chat template reads, see `ChatRenderer.date`. Where answers are there,
        torch's generator is in the state in which the last of them left it.
        """
        self._facts |= {"model": model, "date": date}
        self._check(self._facts)
        if self._random is not None:
            _set_random_state(self._random)
        return self._random is not None

    def add(self, rows: Mapping[int, Row]) -> None:
        """Keep the answers of one batch, in one write of a whole line."""
        self._rows |= rows
        if self._partial is None:
            return
        if self._random is None:
            write_jsonl(self._partial, [{"holds": _MARK, **self._facts}], private=True)
        self._random = _random_state()
        line = {"rows": list(rows.items()), "random": self._random}
        try:
            append_line(self._partial, json.dumps(line).encode())
        except OSError as error:
            raise write_error(self._partial, error) from error

    def finish(self) -> None:
        """Write all answers to the file, in the order of the prompts."""
        write_jsonl(self.path, [self._rows[n] for n in range(self._count)], private=True)
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)

    def _read(self, partial: Path) -> None:
        """Take over the answers of an interrupted command."""
        try:
            lines = [line for line in read_lines(partial) if isinstance(line, dict)]
        except OSError as error:
            raise write_error(partial, error) from error
        if not lines or lines[0].pop("holds", None) != _MARK:
            if not self._force:
                raise InputError(
                    f"{partial} is in the way: it holds no unfinished answers of safesteer. Try:"
                    " move it, or --force to replace it"
                )
            return
        batches = [line for line in lines[1:] if {"rows", "random"} <= line.keys()]
        if not batches:
            return
        self._found = lines[0]
        self._check(self._facts)
        for line in batches if self._found is not None else ():
            self._rows |= {number: row for number, row in line["rows"]}
            self._random = line["random"]

    def _check(self, facts: Mapping[str, Any]) -> None:
        """Refuse unfinished answers of other facts, or drop them with `force`."""
        found = self._found or facts
        different = [key for key, value in facts.items() if found.get(key) != value]
        if not different:
            return
        if not self._force:
            raise InputError(
                f"{self._partial} holds unfinished answers with another {', '.join(different)}."
                " Try: the command that began it, another --output, or --force to start over"
            )
        self._found, self._rows, self._random = None, {}, None


def _random_state() -> str:
    """The state of torch's generators, which decides the sampled answers to come."""
    import torch

    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return " ".join(base64.b64encode(state.numpy().tobytes()).decode() for state in states)


def _set_random_state(text: str) -> None:
    """Put torch's generators into a state that `_random_state` returned."""
    import torch

    first, *others = (
        torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8)
        for state in text.split()
    )
    torch.set_rng_state(first)
    if others and len(others) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(others)
