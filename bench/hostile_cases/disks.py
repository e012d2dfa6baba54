"""Disks that are full: one line, finished work kept, and the same command completes it."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.hostile_cases.case import Case, SilentLoss, check_error_line, command, demand, works
from bench.hostile_cases.room import SHORT, Room, product, snapshot

KIND = "full disks"
COMMANDS: dict[str, list[str]] = {
    "run": ["run", "model", "-c", "small.yaml", "-o", "new"],
    "direction": ["direction", "model", "-c", "small.yaml", "-o", "new"],
    "generate": [
        *("generate", "model", "--prompts", "harmful.jsonl"),
        *("--output", "answers.jsonl", *SHORT),
    ],
    "eval --json": ["eval", "model", "-c", "small.yaml", "--json", "new.json"],
    "compare --html": ["compare", "run", "full", "--html", "new.html"],
    "export adapter": ["export", "run", "--format", "adapter", "--output", "new"],
    "export merged": ["export", "run", "--format", "merged", "--output", "new"],
    "export teacher": ["export", "run", "--format", "teacher", "--output", "new"],
    "export gguf": ["export", "run", "--format", "gguf", "--output", "new.gguf"],
}
# Bytes that a file may have: what is written past them fails, whichever library writes it.
SIZES = {"after 0 bytes": 0, "after 200 bytes": 200, "after 20 kB": 20_000, "after 100 kB": 100_000}


def _limited(size: int, words: list[str], room: Room) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = snapshot(room.path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        outcome = command(room, *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    _then_completes(outcome, words, before, room)


def _then_completes(outcome: Any, words: list[str], before: dict[str, str], room: Room) -> None:
    after = snapshot(room.path)
    changed = [name for name, value in before.items() if after.get(name) != value]
    demand(not changed, f"changed or deleted {', '.join(changed[:4])}")
    if outcome.code:
        check_error_line(outcome, "write|disk|large|space")
    else:  # everything fitted: then it must be whole
        demand("Traceback" not in outcome.err, outcome.err[-300:])
    again = command(room, *words)
    if outcome.code == 0 and again.code and "exist" in again.err:
        return  # it had succeeded, and does not replace its own output
    demand(again.code == 0, f"does not complete afterwards: {again.err[-300:]!r}")
    if words[0] == "run":
        works(room, "report", "new", may_write="^new/")


def _full(number: int, words: list[str], room: Room) -> None:
    """From the `number`-th file on, the disk is full."""
    from safesteer import files

    before = snapshot(room.path)
    plain, count = os.replace, [0]

    def replace(*arguments: Any, **named: Any) -> None:
        count[0] += 1
        if count[0] >= number:
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[1]))
        plain(*arguments, **named)

    files.os.replace = replace  # type: ignore[assignment]
    outcome = command(room, *words)
    files.os.replace = plain  # type: ignore[assignment]
    if count[0] < number:
        return _then_completes(outcome, words, before, room)
    if outcome.code == 0:
        raise SilentLoss("exit 0 on a full disk")
    _then_completes(outcome, words, before, room)


def cases() -> Iterator[Case]:
    """Every command that writes, on a disk that is full after so much."""
    for name, (size, words) in product(SIZES, COMMANDS):
        yield Case(KIND, f"full {name}", partial(_limited, size, words))
    numbers = {f"file {n}": n for n in (1, 2, 4, 7, 12)}
    for name, (number, words) in product(numbers, {"run": COMMANDS["run"]}):
        yield Case(KIND, f"full at {name}", partial(_full, number, words))
    others = {key: words for key, words in COMMANDS.items() if key != "run"}
    for name, (number, words) in product({"file 1": 1}, others):
        yield Case(KIND, f"full at {name}", partial(_full, number, words))
