"""Hostile cases: inputs that are wrong, damaged or odd, and kills, each with what must hold.

    python -m bench.hostile [OUT] [--jobs 2] [--share 10] [--kinds A,B] [--only TEXT] [--failed]
        [--table]
    python bench/hostile.py

Every case gets the same room, with a tiny model, its prompts and finished runs, damages one thing
in it, runs a command as a user would, and checks exit code, screen and files. A wrong input must
stop the command in one line that says what happened, where, and what to try; a right one must
work; nothing that was there may be lost. A *silent loss* is a wrong thing that passes with exit
code 0.

Prints each case that does not hold, and the table of docs/troubleshooting.md. Results are
appended to OUT/results.jsonl, and the same command resumes; those of another version of the
package or of a kind's module are made anew. Exits with 1 unless every case holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # `python bench/hostile.py` puts the folder bench first
    sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "tests"))  # the tiny model lies there
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from bench.command_line import names, run_script  # noqa: E402
from bench.tables import table_head, table_row  # noqa: E402

KINDS = (
    *("weights", "changed_base", "damaged_outputs", "judges", "outputs", "disks"),
    *("templates", "generation", "prompts", "formats", "settings", "odd_names", "injection"),
    *("lengths", "kills"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("out", nargs="?", default="hostile-run", help="folder of results and room")
    parser.add_argument("--share", type=int, default=1, help="only every so many-th case of a kind")
    parser.add_argument("--kinds", type=names, default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--jobs", type=int, default=1, help="processes; each needs 1 GB of memory")
    parser.add_argument("--failed", action="store_true", help="only cases that did not hold")
    parser.add_argument("--table", action="store_true", help="print the table of stored results")


def run(arguments: argparse.Namespace) -> None:
    """Run the cases that have no result yet, and print the table."""
    out = Path(arguments.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "results.jsonl")
    chosen = [
        case for case in all_cases(arguments.kinds, arguments.share) if arguments.only in case.id
    ]
    todo = [case for case in chosen if results.wants(case, arguments.failed)]
    if not arguments.table:
        _run_all(todo, results, out, arguments.jobs)
    missing = print_table(chosen, results)
    if missing:
        raise SystemExit(1)


class Results:
    """Results of cases, in a file that grows by a line per case."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read()

    def read(self) -> None:
        """Read the file, in which the last line of a case counts."""
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        self.rows = {row["case"]: row for row in map(json.loads, lines)}

    def of(self, cases: Sequence[Any]) -> list[dict[str, Any]]:
        """The results of these cases as they are now; those of earlier versions do not count."""
        rows = [self.rows.get(case.id, {}) for case in cases]
        return [
            row for row, case in zip(rows, cases, strict=True) if row.get("version") == case.version
        ]

    def wants(self, case: Any, failed: bool) -> bool:
        """Whether a case has to be run: it has no result, or did not hold if these are wanted."""
        return not self.rows.get(case.id, {}).get("held", True) if failed else not self.of([case])

    def add(self, row: dict[str, Any]) -> None:
        """Keep a result."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def version(*modules: str) -> str:
    """A hash of the package, and of modules of the cases."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src" / "safesteer").rglob("*.py")):
        digest.update(path.read_bytes())
    for name in ("case", "room", *modules):
        digest.update((ROOT / "bench" / "hostile_cases" / f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


def all_cases(kinds: Sequence[str] = KINDS, share: int = 1) -> list[Any]:
    """The cases of these kinds; every `share`-th of them, the first included."""
    from importlib import import_module

    found = []
    for kind in kinds:
        if kind not in KINDS:
            raise SystemExit(f"there is no kind {kind!r}. Try: {', '.join(KINDS)}")
        cases = list(import_module(f"bench.hostile_cases.{kind}").cases())
        # By a hash of the name: the order of a product would repeat one column of it.
        cases.sort(key=lambda case: hashlib.sha256(case.id.encode()).hexdigest())
        current = version(kind)
        found += [replace(case, version=current) for case in cases[::share]]
    repeated = {case.id for case in found if [c.id for c in found].count(case.id) > 1}
    assert not repeated, repeated
    return found


def _run_all(todo: Sequence[Any], results: Results, out: Path, jobs: int) -> None:
    """Run the cases in `jobs` processes, each with a room of its own."""
    if not todo:
        return
    _import_all()
    workers = []
    for job in range(jobs):
        worker = os.fork()
        if worker == 0:
            status = 1
            try:
                _work(todo[job::jobs], results, out / f"work-{job}")
                status = 0
            except KeyboardInterrupt:
                pass
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        workers.append(worker)
    failed = [worker for worker in workers if os.waitpid(worker, 0)[1]]
    results.read()
    if failed:
        raise SystemExit("interrupted, or a room could not be built. Try: the same command again")


def _work(todo: Sequence[Any], results: Results, folder: Path) -> None:
    from bench.hostile_cases.room import Room

    room = Room(folder)
    stamp = room.folder / "built"
    current = version()
    if not (stamp.exists() and stamp.read_text() == current):
        if _in_child(room.build, 600) != 0:
            raise SystemExit("the room of the cases cannot be built")
        stamp.write_text(current)
    for number, case in enumerate(todo, start=1):
        row = _run_case(case, room)
        results.add(row)
        if not row["held"]:
            print(f"{number}/{len(todo)} {case.id}: {row['why']}", flush=True)


def _import_all() -> None:
    """Import what commands import late, so that a fork of this process starts at once.

    Torch must not compute here: its pool of threads does not survive a fork.
    """
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl  # noqa: F401

    import safesteer.cli.main
    import safesteer.export.formats
    import safesteer.pipeline.align
    import safesteer.pipeline.doctor
    import safesteer.pipeline.evaluate
    import safesteer.pipeline.report  # noqa: F401


def _run_case(case: Any, room: Any) -> dict[str, Any]:
    from bench.hostile_cases.case import Broken, SilentLoss

    room.restore()
    verdict = room.folder / "verdict.json"
    verdict.unlink(missing_ok=True)

    def act() -> None:
        found = {"held": True, "silent": False, "why": ""}
        try:
            case.act(room)
        except Broken as error:
            silent = isinstance(error, SilentLoss)
            found = {"held": False, "silent": silent, "why": str(error)}
        except Exception as error:  # a fault of the case itself
            found["held"], found["why"] = False, f"the case failed: {error!r}"
        verdict.write_text(json.dumps(found), "utf-8")

    started = time.monotonic()
    status = _in_child(act, case.seconds)
    row = {"case": case.id, "kind": case.kind, "kills": case.kills, "version": case.version}
    if verdict.exists():
        row |= json.loads(verdict.read_text("utf-8"))
    else:
        why = f"took over {case.seconds:.0f} s" if status is None else f"died with {status}"
        row |= {"held": False, "silent": False, "why": why}
    return {**row, "seconds": round(time.monotonic() - started, 2)}


def _in_child(work: Any, seconds: float) -> int | None:
    """Do the work in a fork of this process; its exit status, or None after so many seconds."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        status = 1
        with open(os.environ.get("HOSTILE_LOG", os.devnull), "ab") as log:  # libraries' bars
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            work()
            status = 0
        except BaseException as error:
            print(f"{error!r}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            os._exit(status)
    ends = time.monotonic() + seconds
    try:
        while time.monotonic() < ends:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
    except BaseException:
        _kill(child)
        raise
    _kill(child)
    return None


def _kill(child: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def print_table(cases: Sequence[Any], results: Results) -> int:
    """Print what held by kind; returns the number of cases that did not hold or have no result."""
    print(table_head("kind", "cases", "held", "silent losses"))
    total = [0, 0, 0]
    for kind, members in _by_kind(cases):
        rows = results.of(members)
        counts = [len(rows), sum(r["held"] for r in rows), sum(r["silent"] for r in rows)]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        kills = sum(row["kills"] for row in rows)
        print(table_row(f"{kind} ({kills} kills)" if kills else kind, *counts))
    print(table_row("**all**", *total))
    minutes = sum(row["seconds"] for row in results.of(cases)) / 60
    print(f"\n{total[0]} of {len(cases)} cases, in {minutes:.1f} min of one process")
    return len(cases) - total[1]


def _by_kind(cases: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    for kind in dict.fromkeys(case.kind for case in cases):
        yield kind, [case for case in cases if case.kind == kind]


if __name__ == "__main__":
    run_script("bench.hostile")
