"""A hostile case: an input that is wrong, damaged or odd, a command, and what must hold."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.hostile_cases.room import Room, snapshot

CLASS_NAME = re.compile(r"\b(?!LibraryError)[A-Z]\w*(Error|Exception|Warning|Interrupt)\b|<class ")
# Spelled out on the screen, never obeyed: C0 and C1 but line breaks, and marks that turn the text.
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# A run that stops keeps its record, and the settings it was given.
RECORDS = r"(^|.*/)(manifest\.json|config\.yaml|\.lock)$"


class Broken(Exception):
    """What had to hold does not."""


class SilentLoss(Broken):
    """A wrong thing passed with exit code 0."""


@dataclass(frozen=True)
class Case:
    """One case; `act` raises `Broken` unless everything that it demands holds."""

    kind: str
    name: str
    act: Callable[[Room], None]
    kills: int = 0  # how many kills the case makes
    seconds: float = 60.0  # it is stopped, and broken, after this long
    version: str = ""  # a hash of the package and of the case's module

    @property
    def id(self) -> str:
        """Unique among all cases."""
        return f"{self.kind}: {self.name}"


@dataclass
class Outcome:
    """What a command left behind."""

    words: Sequence[str]
    code: int
    out: str
    err: str
    seconds: float
    before: dict[str, str] = field(repr=False)
    after: dict[str, str] = field(repr=False)

    @property
    def said(self) -> str:
        """Everything on the screen, on one line."""
        return " ".join((self.out + self.err).split())

    @property
    def changed(self) -> list[str]:
        """Files that were there before, and are not as they were."""
        return [name for name, old in self.before.items() if self.after.get(name) != old]

    @property
    def new(self) -> list[str]:
        """Files that were not there before."""
        return [name for name in self.after if name not in self.before]


def command(room: Room, *words: Any, stdin: bytes = b"") -> Outcome:
    """Run `safesteer WORDS` in this process, with the room as working folder."""
    from safesteer.cli.main import main

    given = [str(word) for word in words]
    before = snapshot(room.path)
    os.chdir(room.path)
    started = time.monotonic()
    with _redirected(stdin) as screen:
        try:
            code = main(given)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as error:  # it must not come this far
            traceback.print_exc()
            code = 130 if isinstance(error, KeyboardInterrupt) else 70
    seconds = time.monotonic() - started
    out, err = (b"".join(part).decode("utf-8", "replace") for part in screen)
    return Outcome(given, code, out, err, seconds, before, snapshot(room.path))


@contextlib.contextmanager
def _redirected(stdin: bytes) -> Iterator[list[list[bytes]]]:
    """File descriptors and Python's streams, since libraries write to either, as pipes."""
    kept = sys.stdin, sys.stdout, sys.stderr
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in range(3)]
    given, feed = os.pipe()
    os.write(feed, stdin)
    os.close(feed)
    os.dup2(given, 0)
    os.close(given)
    screen: list[list[bytes]] = [[], []]
    readers = []
    for number, part in enumerate(screen, start=1):
        end, start = os.pipe()
        os.dup2(start, number)
        os.close(start)
        readers.append(threading.Thread(target=_collect, args=(end, part), daemon=True))
        readers[-1].start()
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    try:
        yield screen
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        for number, copy in enumerate(saved):
            os.dup2(copy, number)
            os.close(copy)
        sys.stdin, sys.stdout, sys.stderr = kept
        for reader in readers:
            reader.join(5)


def _collect(end: int, part: list[bytes]) -> None:
    while block := os.read(end, 65536):
        part.append(block)


def stops(
    room: Room,
    *words: Any,
    names: str = "",
    never: str = "",
    code: Sequence[int] = (1, 2),
    may_write: str = "",
    stdin: bytes = b"",
    within: float = 30.0,
) -> Outcome:
    """The command must fail in one line that helps, and leave everything as it was.

    Args:
        names: a pattern that the line holds, such as the file or the key that is wrong.
        never: a pattern that no output holds.
        code: exit codes that fit.
        may_write: a pattern of new or changed files, besides the records of a run.
        within: seconds.
    """
    outcome = command(room, *words, stdin=stdin)
    if outcome.code == 0:
        raise SilentLoss(f"exit 0, and the screen says: {outcome.said[-300:]!r}")
    check_error_line(outcome, names, never)
    if outcome.code not in code:
        raise Broken(f"exit code {outcome.code}: {outcome.err.strip()!r}")
    check_files(outcome, may_write)
    if outcome.seconds > within:
        raise Broken(f"took {outcome.seconds:.0f} s")
    return outcome


def works(
    room: Room,
    *words: Any,
    says: str = "",
    never: str = "",
    may_write: str = "",
    stdin: bytes = b"",
    code: int = 0,
) -> Outcome:
    """The command must succeed, say what the pattern `says` asks for, and change no other file."""
    outcome = command(room, *words, stdin=stdin)
    if outcome.code != code:
        raise Broken(f"exit code {outcome.code}: {(outcome.err or outcome.out).strip()[-300:]!r}")
    if "Traceback" in outcome.out + outcome.err:
        raise Broken("a traceback")
    check_clean(outcome, never)
    if says and not re.search(says, outcome.said, re.IGNORECASE):
        raise SilentLoss(f"nothing like /{says}/ in: {outcome.said[-400:]!r}")
    check_files(outcome, may_write)
    return outcome


def check_error_line(outcome: Outcome, names: str = "", never: str = "") -> None:
    """One line on stderr: *what happened, where. Try: A, or B.*"""
    text = outcome.err
    if "Traceback" in outcome.out + text:
        raise Broken(f"a traceback: {text[-300:]!r}")
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) != 1:
        raise Broken(f"{len(lines)} lines on stderr: {text[:400]!r}")
    if found := CLASS_NAME.search(lines[0]):
        raise Broken(f"a Python name ({found[0]}): {lines[0]!r}")
    if not re.search(r"\bTry\b|Resume with", lines[0]):
        raise Broken(f"no advice: {lines[0]!r}")
    if names and not re.search(names, lines[0], re.IGNORECASE):
        raise Broken(f"does not name /{names}/: {lines[0]!r}")
    check_clean(outcome, never)


def check_clean(outcome: Outcome, never: str = "") -> None:
    """No control characters from outside reach the screen, and nothing of `never`."""
    for text in (outcome.out, outcome.err):
        if found := CONTROL.search(text):
            raise Broken(f"the control character {found[0]!r} on the screen")
        if never and (found := re.search(never, text)):
            raise Broken(f"{found[0]!r} on the screen")


def check_files(outcome: Outcome, may_write: str = "") -> None:
    """Nothing changed, vanished or appeared but what may."""
    allowed = re.compile(f"{RECORDS}|{may_write}" if may_write else RECORDS)
    changed = [name for name in outcome.changed if not allowed.search(name)]
    if changed:
        raise Broken(f"changed or deleted {', '.join(changed[:4])}")
    new = [name for name in outcome.new if not allowed.search(name)]
    if new:
        raise Broken(f"left behind {', '.join(new[:4])}")


def demand(holds: Any, why: str, *, silent: bool = False) -> None:
    """Raise `Broken`, or `SilentLoss`, unless `holds`."""
    if not holds:
        raise (SilentLoss if silent else Broken)(why)
