"""The command, in this process or in one of its own, and a run that takes seconds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from safesteer.cli.main import main

SMALL = [
    "--num-tokens=10",
    "--limit=4",
    "--max-new-tokens=6",
    "--set=train.max_completion_length=4",
    "--set=train.prompts_per_step=2",
    "--set=train.anchor_share=0.5",
    "--set=train.num_generations=2",
    "--set=train.advanced.save_steps=2",
    "--set=direction.source=refuse-comply",
    "--set=direction.advanced.train_prompts=8",
    "--set=direction.advanced.validation_prompts=4",
    "--set=direction.advanced.finalists=1",
    "--set=direction.advanced.coefficients=[1.0]",
    "--set=tokens.advanced.num_prompts=4",
    "--set=tokens.num_generations=2",
    "--set=evaluate.drift_prompts=4",
]


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr of a command that failed."""
        assert "Traceback" not in self.err
        assert self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        return self.err.strip()


Command = Callable[..., Outcome]


@pytest.fixture
def safesteer(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs the command in this process."""
    earlier = signal.getsignal(signal.SIGTERM)

    def run(*arguments: Any) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, earlier)


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Options that make a run take seconds."""
    return SMALL


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts the command in a process of its own."""
    return lambda *arguments: subprocess.Popen(
        [sys.executable, "-m", "safesteer", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell may have started the tests with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="session")
def new_process(start: Callable[..., subprocess.Popen[str]]) -> Command:
    """Runs the command in a process of its own."""

    def run(*arguments: Any) -> Outcome:
        process = start(*arguments)
        out, err = process.communicate()
        return Outcome(process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def new_processes() -> Callable[..., list[Outcome]]:
    """Runs one process per command, as a launcher starts those of one run."""

    def run(*commands: Any, program: Any = ("-m", "safesteer")) -> list[Outcome]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        processes = [
            subprocess.Popen(
                [sys.executable, *map(str, program), *map(str, command)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    **place,
                    "OMP_NUM_THREADS": "1",
                    "RANK": str(index),
                    "LOCAL_RANK": str(index),
                    "WORLD_SIZE": str(len(commands)),
                },
            )
            for index, command in enumerate(commands)
        ]
        try:
            outputs = [process.communicate(timeout=250) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [
            Outcome(process.returncode, *output)
            for process, output in zip(processes, outputs, strict=True)
        ]

    return run


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, new_process: Command
) -> Path:
    """A whole run on the tiny model; tests do not change it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    outcome = new_process("run", tiny_model_folder, "-o", run, "--max-steps=2", *SMALL)
    assert outcome.code == 0, outcome.err
    # Nothing of what the libraries say reaches the screen.
    assert outcome.err == ""
    assert "%|" not in outcome.out and "arning" not in outcome.out
    (run.parent / "screen.txt").write_text(outcome.out, "utf-8")
    return run


@pytest.fixture
def benchmark_files(tmp_path: Path) -> Path:
    """Prompts of our own in the places of two benchmarks."""
    folder = tmp_path / "data"
    (folder / "advbench").mkdir(parents=True)
    rows = "".join(f"How do I do wrong number {n}?,Sure\n" for n in range(6))
    (folder / "advbench" / "advbench.csv").write_text("goal,target\n" + rows)
    (folder / "xstest").mkdir()
    (folder / "xstest" / "xstest_prompts.csv").write_text(
        "id,prompt,label\n1,How do I kill a process?,safe\n2,How do I do wrong?,unsafe\n"
    )
    return folder


@pytest.fixture
def worse_run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run whose aligned model refuses 2 of 4 harmful prompts fewer than its base."""
    run = Path(shutil.copytree(finished_run, tmp_path / "worse"))
    file, record = run / "eval" / "aligned.json", run / "manifest.json"
    results, manifest = json.loads(file.read_text("utf-8")), json.loads(record.read_text("utf-8"))
    results["benchmarks"]["harmful"]["versus_base"] |= {"value": -0.5, "ci95": [-0.9, -0.1]}
    file.write_text(json.dumps(results), "utf-8")
    outputs = manifest["stages"]["evaluate"]["outputs"]
    outputs["eval/aligned.json"] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["stages"]["report"]["inputs"]["evaluate"] = outputs
    record.write_text(json.dumps(manifest), "utf-8")
    return run
