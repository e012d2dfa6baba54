"""Two processes on the CPU: the results of one, whichever way the weights are laid out.

Rollouts are so cold that they are greedy: losses can then be compared. (pytest tests/cli)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from safetensors.torch import load_file

from safesteer.distill import config as distill_config

HERE = Path(__file__).parent
# What two processes measure is what one does up to the order of float32 sums. Of a matrix the
# deviation is taken as a whole: Adam divides a gradient by its own size, so that where one is next
# to nothing its roundings become a step (on some processors 1.3e-4 in one weight of 512).
BOUND = 1e-4
WEIGHT_BOUND = 1e-3

ONLY_TRAINED = [
    "--max-steps=4",
    "--learning-rate=0.01",
    "--dtype=float32",
    "--device=cpu",
    "--set=train.max_completion_length=6",
    # Of four rows one is an anchor: the processes differ in what they have to run.
    "--set=train.prompts_per_step=4",
    "--set=train.num_generations=1",
    "--set=train.anchor_share=0.25",
    "--set=train.lora.extrapolation=0.5",
    "--set=train.lora.kfac_damping=0.1",
]


@pytest.fixture(scope="module")
def model(tiny_model_folder, tmp_path_factory):
    """The tiny model with many tokens that end an answer, so that lengths differ."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_model_folder, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    config["eos_token_id"] = [config["eos_token_id"], *range(100, 160)]
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def arguments(small, model):
    """Of `safesteer train`, without the folder of the run."""
    return ["train", str(model), *small, *ONLY_TRAINED, "--output-dir"]


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory):
    """The run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    command = [sys.executable, HERE / "cold.py", *arguments, run]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def cold(monkeypatch):
    """Greedy rollouts in this process, too."""
    monkeypatch.setattr(distill_config, "ROLLOUT_TEMPERATURE", 0.0001)


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]


def assert_same(run: Path, expected: Path) -> None:
    """Every number of the metrics and every matrix of the adapter, within the bounds."""
    lines, wanted = metrics(run), metrics(expected)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert len({line["completion_length"] for line in wanted}) > 1
    for line, other in zip(lines, wanted, strict=True):
        for key in ("loss", "grad_norm", "lr", "entropy", "completion_length", "refusal_rate"):
            assert line[key] == pytest.approx(other[key], rel=BOUND), key
    name = "adapter/adapter_model.safetensors"
    weights, others = load_file(run / name), load_file(expected / name)
    assert weights.keys() == others.keys()
    for key, weight in weights.items():
        assert (weight - others[key]).norm() < WEIGHT_BOUND * others[key].norm(), key
    assert max(weight.abs().max() for key, weight in weights.items() if "lora_B" in key) > 0.01


def launch(config: str, *command: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with a config file of the package."""
    file = resources.files("safesteer.config") / "recipes" / "accelerate" / f"{config}.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    return subprocess.run(
        [*launcher, "--main_process_port", "0", *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=250,
        check=False,
    )


@pytest.fixture(scope="module")
def broken_off(arguments, alone, new_processes, tmp_path_factory):
    """A run of two processes of which one was killed after three updates; checkpoints at two.

    The other says so in one line. Direction and tokens, which the main process finds alone, are
    those of one process, to the byte.
    """
    run = tmp_path_factory.mktemp("broken-off") / "run"
    main, other = new_processes(*[[*arguments, run]] * 2, program=[HERE / "dies.py"])
    assert (main.code, other.code) == (1, -signal.SIGKILL), main.err + other.err
    assert main.err.count("\n") == 1 and "lost contact with another process" in main.err
    assert other.out == other.err == ""  # the main process alone prints
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["stages"]["train"]["status"] == "failed"
    assert [path.name for path in (run / "train").glob("checkpoint-*")] == ["checkpoint-2"]
    for name in ("direction/direction.safetensors", "tokens/safety_tokens.json"):
        assert (run / name).read_bytes() == (alone / name).read_bytes()
    return run


def test_the_same_command_again_ends_as_one_process_does(arguments, alone, broken_off, tmp_path):
    """Copies of the model (DDP), from the checkpoint to the adapter; only we print, and once."""
    run = shutil.copytree(broken_off, tmp_path / "run")
    done = launch("ddp-2-gpus", HERE / "cold.py", *arguments, run)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(run, alone)
    updates = [line.split()[1] for line in done.stdout.splitlines() if "  step " in line]
    assert updates == ["3/4", "4/4"]
    assert done.stderr == ""


def test_one_process_goes_on_with_the_run_of_two(
    arguments, alone, broken_off, safesteer, cold, tmp_path
):
    """A checkpoint of copies is one of a single process, too."""
    run = shutil.copytree(broken_off, tmp_path / "run")
    done = safesteer(*arguments, run)
    assert done.code == 0, done.err
    assert "step 3/4" in done.out and "step 2/4" not in done.out
    assert_same(run, alone)


def test_weights_spread_over_processes(arguments, alone, safesteer, cold, tmp_path):
    """FSDP 2: rollouts, teacher, losses and the gathered adapter are those of one process."""
    *begin, last = arguments
    arguments = [*begin, "--set=train.lora.kfac_damping=null", last]  # which takes whole adapters
    expected, run = tmp_path / "expected", tmp_path / "run"
    for folder in (expected, run):
        shutil.copytree(alone, folder, ignore=shutil.ignore_patterns("train", "adapter"))
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["stages"]["train"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    done = safesteer(*arguments, expected)
    assert done.code == 0, done.err
    done = launch("fsdp2-2-gpus", HERE / "fsdp_on_cpu.py", *arguments, run)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(run, expected)
    assert (run / "train" / "checkpoint-4" / "pytorch_model_fsdp_0").is_dir()


def test_processes_that_were_told_different_things(arguments, new_processes, tmp_path):
    """One line in all, which names the setting; nothing is computed."""
    run = tmp_path / "run"
    main, other = new_processes([*arguments, run], [*arguments, run, "--seed=1"])
    assert main.code != 0 and other.code == 2
    assert "settings.seed" in other.error
    assert main.err == ""
    assert not (run / "direction").exists()
