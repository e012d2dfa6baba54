"""Kills at random moments, by SIGKILL and Ctrl-C: the same command completes, equal results."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.hostile_cases.case import Case, demand
from bench.hostile_cases.room import Room, completions, read_manifest, results_of, rows_of

KIND = "kills"
KILLS = 4  # of each case
# {what: (number of cases, words, the output)}
WORK: dict[str, tuple[int, list[str], str]] = {
    "run": (
        17,
        [
            *("run", "model", "-c", "small.yaml", "-o", "out"),
            *("--max-steps=6", "--set=train.advanced.save_steps=2"),
        ],
        "out",
    ),
    "generate": (
        3,
        [
            *("generate", "model", "--prompts", "harmful.jsonl", "--output", "out.jsonl"),
            *("--set=evaluate.advanced.batch_size=1", "--max-new-tokens=60"),
        ],
        "out.jsonl",
    ),
    "eval": (2, ["eval", "model", "-c", "small.yaml", "--json", "out.json"], "out.json"),
    "export": (3, ["export", "run", "--format", "merged", "--output", "out"], "out"),
}


def attempt(room: Room, words: Sequence[str], moment: float | None, number: int) -> tuple[int, str]:
    """Run the command in a process, and kill it after so many seconds: (exit code, stderr)."""
    from safesteer.cli.main import main

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(room.path)
        for target, name in ((1, "out.txt"), (2, "err.txt")):
            file = os.open(room.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, target)
        code = 70
        try:
            code = main(list(words))
        except KeyboardInterrupt:  # before `main` began to listen
            os.write(2, b"interrupted\n")
            code = 130
        finally:
            os._exit(code)
    ends = None if moment is None else time.monotonic() + moment
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), (room.folder / "err.txt").read_text("utf-8")
        if ends is not None and time.monotonic() > ends:
            os.kill(child, number)
            ends = None
        time.sleep(0.002)


def _found(what: str, path: Path) -> Any:
    if what == "run":
        return results_of(path)
    if what == "generate":
        return completions(path)
    if what == "eval":
        return {**json.loads(path.read_text("utf-8")), "seconds": None}
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def _killed(what: str, seed: int, number: int, room: Room) -> None:
    _, words, output = WORK[what]
    path, kept = room / output, room / "kept"
    draw = random.Random(f"{what} {seed}")
    started = time.monotonic()
    code, err = attempt(room, words, None, number)
    seconds = time.monotonic() - started
    demand(code == 0, f"fails without a kill: {err}")
    path.rename(kept)
    expected = _found(what, kept)
    kills = 0
    while kills < KILLS:
        code, err = attempt(room, words, draw.uniform(0.02, 0.7 * seconds), number)
        if code == 0:  # it was faster
            _compare(what, path, expected)
            remove(path)
            continue
        kills += 1
        if number == signal.SIGINT:
            demand(code == 130, f"exit code {code} after Ctrl-C: {err!r}")
            demand(err.count("\n") == 1 and "interrupted" in err, f"after Ctrl-C: {err!r}")
        else:
            demand(code == -signal.SIGKILL, f"exit code {code}: {err!r}")
        _finished_work_is_there(what, path)
    code, err = attempt(room, words, None, number)
    demand(code == 0, f"does not complete after {kills} kills: {err!r}")
    _compare(what, path, expected)


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _compare(what: str, path: Path, expected: Any) -> None:
    found = _found(what, path)
    if isinstance(expected, dict):
        differ = [name for name in expected if found.get(name) != expected[name]]
        differ += [name for name in found if name not in expected]
    else:
        differ = [] if found == expected else ["answers"]
    demand(not differ, f"differs from the run without kills: {', '.join(differ[:4])}", silent=True)


def _finished_work_is_there(what: str, path: Path) -> None:
    """What was done before the kill is there and whole."""
    from safesteer.files import sha256_file

    if what == "run" and (path / "manifest.json").exists():
        for stage, entry in read_manifest(path)["stages"].items():
            for file, expected in entry["outputs"].items() if entry["status"] == "done" else ():
                same = (path / file).is_file() and sha256_file(path / file) == expected
                demand(same, f"{file} of the finished stage {stage} is lost")
    elif what == "eval" and path.exists():
        json.loads(path.read_text("utf-8"))
    elif what == "generate" and path.exists():
        rows_of(path) if path.read_bytes().endswith(b"\n") else None


def cases() -> Iterator[Case]:
    """Four kills each, half of the cases by SIGKILL and half by Ctrl-C."""
    for what, (count, _, _) in WORK.items():
        for seed in range(count):
            name, number = (
                ("SIGKILL", signal.SIGKILL) if seed % 2 == 0 else ("Ctrl-C", signal.SIGINT)
            )
            act = partial(_killed, what, seed, number)
            yield Case(KIND, f"{what} / {name} / {seed}", act, kills=KILLS, seconds=240)
