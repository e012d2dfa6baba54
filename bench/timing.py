"""Paired timing: alternating measurements, medians, and processes of their own.

What is compared takes turns, so that a machine that slows down slows both. A measurement in a
process of its own finds nothing that another one left in memory or caches.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

Name = TypeVar("Name")
Found = TypeVar("Found")


def in_turns(
    names: Iterable[Name], measure: Callable[[Name], Found], repeats: int
) -> dict[Name, list[Found]]:
    """{name: its `repeats` measurements}; each round measures every name once."""
    found: dict[Name, list[Found]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, measurements in found.items():
            measurements.append(measure(name))
    return found


def timed(work: Callable[[], Found]) -> tuple[Found, float]:
    """What `work` returns, and the seconds that it takes."""
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of every figure over the runs."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def in_own_process(module: str, *arguments: object) -> Any:
    """The JSON value in the last line that `python -m MODULE ARGUMENTS` prints.

    Raises:
        SystemExit: the process failed; with the last line of its error.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])
