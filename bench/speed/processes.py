"""Several copies of the model on a core each against one process on one core.

    python -m bench.speed processes OUTPUT_DIR [MODEL] [--processes 2] [--steps 16] [--repeats 2]
        [--set section.key=value]

Direction and tokens are found once; then the same training runs in one process and, with
accelerate's launcher, in several, of one thread each, in turns. Prints means over the repeats, as
the main process measured them: rollouts per second of generation, and completions per second of
whole steps, without the first rollout batch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from importlib import resources
from itertools import count
from pathlib import Path

from bench.tables import table_head, table_row
from bench.timing import in_turns
from safesteer.runs.directory import RunDirectory

# `accelerate launch --cpu` starts a single process; copies without visible GPUs run on CPUs.
COPIES = resources.files("safesteer.config") / "recipes" / "accelerate" / "ddp-2-gpus.yaml"
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(COPIES)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("output", type=Path)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")


def run(arguments: argparse.Namespace) -> None:
    """Print a table."""
    given = [f"train.max_steps={arguments.steps}", *arguments.set]
    options = [part for value in given for part in ("--set", value)]
    first = arguments.output / "direction-and-tokens"
    start(1, "tokens", arguments.model, *options, "--output-dir", str(first))
    train = RunDirectory.load(first).settings.train
    window = train.steps_per_generation
    if arguments.steps % window or arguments.steps < 2:
        raise SystemExit(f"--steps must be a multiple of {window}, and at least 2")
    numbered = count()

    def measure(processes: int) -> tuple[float, float]:
        folder = arguments.output / f"{processes}-{next(numbered)}"
        shutil.copytree(first, folder, dirs_exist_ok=True)
        start(processes, "train", arguments.model, *options, "--output-dir", str(folder))
        return speeds(folder, window, train.completions_per_step)

    found = in_turns((1, arguments.processes), measure, arguments.repeats)
    means = {
        processes: [statistics.mean(column) for column in zip(*runs, strict=True)]
        for processes, runs in found.items()
    }
    print(table_head("processes", "rollouts / s", "completions / s"))
    for processes, rates in means.items():
        cells = [f"{r:.2f} ({r / one:.2f})" for r, one in zip(rates, means[1], strict=True)]
        print(table_row(processes, *cells))


def start(processes: int, *command: str) -> None:
    """Run `python -m safesteer COMMAND` in so many processes of one thread.

    They are bound to as many cores, since libraries beside torch have threads of their own.

    Raises:
        SystemExit: the command failed.
    """
    launch = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:processes]))]
    if processes > 1:
        launch += [*LAUNCHER, "--main_process_port", "0", "--num_processes", str(processes)]
    else:
        launch.append(sys.executable)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch += ["-m", "safesteer", *command, "--quiet"]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-2000:])


def speeds(run: Path, window: int, completions: int) -> tuple[float, float]:
    """Rollouts per second of generation, and completions per second of whole steps."""
    text = (run / "train" / "metrics.jsonl").read_text("utf-8")
    lines = [json.loads(line)["seconds"] for line in text.splitlines()][window:]
    rollout = sum(line["rollout"] for line in lines)
    made = completions * len(lines)
    return made / rollout, made / sum(sum(line.values()) for line in lines)
