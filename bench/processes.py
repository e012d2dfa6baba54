"""Two copies of the model on a core each against one process on one core.

    python bench/processes.py OUTPUT_DIR [MODEL] [--processes 2] [--updates 16] [--repeats 2]
        [--set section.key=value]

Direction and tokens are found once; then the same training is started with accelerate's launcher
and one or more processes of one thread each, taking turns. Printed are means over the repeats, as
the main process measured: rollouts per second of writing them, and completions per second of whole
updates, the first window left out.
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
from pathlib import Path

from safesteer.runs.directory import RunDirectory

# `accelerate launch --cpu` starts a single process; this file's copies run on hidden GPUs' CPUs.
COPIES = resources.files("safesteer.config") / "recipes" / "accelerate" / "ddp-2-gpus.yaml"
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(COPIES)]


def start(processes: int, *command: str) -> None:
    """`python -m safesteer COMMAND` in so many processes of one thread; ends this one if it fails.

    They are held on as many cores, since libraries beside torch have threads of their own.
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
    """Rollouts per second of writing, completions per second of updates."""
    text = (run / "train" / "metrics.jsonl").read_text("utf-8")
    lines = [json.loads(line)["seconds"] for line in text.splitlines()][window:]
    rollout = sum(line["rollout"] for line in lines)
    made = completions * len(lines)
    return made / rollout, made / sum(sum(line.values()) for line in lines)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    arguments = parser.parse_args()
    given = [f"train.updates={arguments.updates}", *arguments.set]
    options = [part for value in given for part in ("--set", value)]
    begun = arguments.output / "begun"
    start(1, "tokens", arguments.model, *options, "--output-dir", str(begun))
    train = RunDirectory.load(begun).settings.train
    if arguments.updates % train.updates_per_rollout or arguments.updates < 2:
        raise SystemExit(f"--updates has to be a multiple of {train.updates_per_rollout}")
    found: dict[int, list[tuple[float, float]]] = {1: [], arguments.processes: []}
    for repeat in range(arguments.repeats):
        for count, runs in found.items():
            run = arguments.output / f"{count}-{repeat}"
            shutil.copytree(begun, run, dirs_exist_ok=True)
            start(count, "train", arguments.model, *options, "--output-dir", str(run))
            runs.append(speeds(run, train.updates_per_rollout, train.completions_per_update))
    print("| processes | rollouts / s | completions / s |\n|---|---|---|")
    means = {
        count: [statistics.mean(c) for c in zip(*runs, strict=True)]
        for count, runs in found.items()
    }
    for count, found_mean in means.items():
        cells = [f"{m:.2f} ({m / a:.2f})" for m, a in zip(found_mean, means[1], strict=True)]
        print(f"| {count} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
