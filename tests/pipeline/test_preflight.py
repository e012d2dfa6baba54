"""The front door: wrong input is reported before a model is loaded, for commands and Python."""

from __future__ import annotations

import json
from collections import namedtuple
from functools import partial
from typing import Any

import pytest
from tiny import JOB_OF_SECONDS

import safesteer
from safesteer.cli.main import main
from safesteer.config.load import load_settings
from safesteer.distill import trackers
from safesteer.errors import InputError
from safesteer.pipeline import preflight
from safesteer.pipeline.stages import Pipeline
from safesteer.prompts import load_prompt_sets
from safesteer.runs.directory import RunDirectory
from safesteer.runs.target import Target


def no_model(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a model was loaded")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("a prompt file", {"prompts": {"harmful": "missing.csv"}}, "missing.csv"),
    ("a benchmark", {"evaluate": {"benchmarks": ["no-such"]}}, "no-such"),
    ("a judge", {"evaluate": {"judges": ["no-such"]}}, "no-such"),
    ("a device", {"model": {"device": "cuda:7"}}, "cuda"),
    ("vLLM without CUDA", {"train": {"rollouts": "vllm"}}, "vllm"),
    ("a quantization of all weights", {"train": {"method": "full"}}, "quantization"),
    ("the share of anchors", {"train": {"anchor_share": 0.99}}, "anchor_share"),
]


@pytest.mark.parametrize("sections, word", [case[1:] for case in WRONG], ids=[c[0] for c in WRONG])
def test_wrong_input_is_found_before_a_model_is_loaded(
    sections, word, tiny_model_folder, tmp_path, monkeypatch, capsys
):
    """Python raises InputError and the command ends with 2, with the same words."""
    if word == "quantization":
        sections = {**sections, "model": {"quantization": "4bit"}}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("safesteer.runs.artifacts.load_model", no_model)
    with pytest.raises(InputError, match=word) as raised:
        safesteer.align(str(tiny_model_folder), "run", **sections)
    given = []
    for section, values in sections.items():
        for key, value in values.items():
            given += ["--set", f"{section}.{key}={json.dumps(value)}"]
    code = main(["run", str(tiny_model_folder), "--output-dir", "run", *given])
    assert code == 2
    assert capsys.readouterr().err.strip() == " ".join(str(raised.value).split())


def test_a_command_and_python_leave_the_same_run(tiny_model_folder, tmp_path):
    """They differ in nothing but who prints."""
    run = safesteer.align(str(tiny_model_folder), tmp_path / "python", **JOB_OF_SECONDS)
    (tmp_path / "job.json").write_text(json.dumps(JOB_OF_SECONDS), "utf-8")
    (tmp_path / "job.yaml").write_text((tmp_path / "job.json").read_text("utf-8"), "utf-8")
    command = ["run", str(tiny_model_folder), "--config", str(tmp_path / "job.yaml")]
    assert main([*command, "--output-dir", str(tmp_path / "command"), "--quiet"]) == 0
    other = RunDirectory.load(tmp_path / "command")
    assert other.settings == RunDirectory.load(run.path).settings
    for name in ("direction", "tokens", "evaluate"):
        assert other.output_hashes(name) == run.output_hashes(name)
    adapters = [
        {k: v for k, v in found.output_hashes("train").items() if k.endswith(".safetensors")}
        for found in (run, other)
    ]
    assert adapters[0] == adapters[1] and adapters[0]


def test_a_disk_too_small_for_the_checkpoints(tiny_model_folder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    monkeypatch.setattr(Pipeline, "run_all", no_model)
    with pytest.raises(InputError, match=r"0\.0 GB free, and the training needs about 0\.1 GB"):
        safesteer.align(str(tiny_model_folder), tmp_path / "run")


def test_more_weights_need_more_disk(tiny_model_folder, tmp_path, monkeypatch):
    """Full training keeps optimizer states of all weights, an adapter those of its own."""
    asked = []
    usage = namedtuple("usage", "total used free")

    def measure(path):
        asked.append(path)
        return usage(10**9, 0, 10**8 + 10**6)

    monkeypatch.setattr(preflight.shutil, "disk_usage", measure)
    settings = load_settings(model={"id": str(tiny_model_folder)}, train={"lora": {"r": 1}})
    preflight.check_disk(tmp_path, settings)  # an adapter fits into the spare megabyte
    settings.train.method = "full"
    with pytest.raises(InputError, match=r"Try: another --output-dir, or train.method=lora"):
        preflight.check_disk(tmp_path, settings)
    assert asked == [tmp_path, tmp_path]


def test_the_dtype_is_measured_once(tiny_model_folder, tmp_path, monkeypatch):
    """A later start of a run uses what the first one measured, whatever the machine says then."""
    settings = load_settings(model={"id": str(tiny_model_folder)})
    with preflight.open_run(tmp_path / "run", settings) as run:
        measured = run.manifest["model"]["dtype"]
    monkeypatch.setattr(preflight, "pick_dtype", no_model)
    with preflight.open_run(tmp_path / "run", settings) as run:
        assert run.manifest["model"]["dtype"] == measured
        assert Pipeline(run).model_settings.dtype == measured


def test_only_pending_stages_are_checked(tiny_model_folder, tmp_path, monkeypatch):
    """A trained run needs no tracker, unless it trains again; --fresh deletes nothing too early."""
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    settings = load_settings(model={"id": str(tiny_model_folder)}, report_to=["wandb"])
    target = Target(settings, tmp_path / "run", True)
    with preflight.open_run(target.path, settings) as run:
        for name in ("direction", "tokens", "train"):
            with Pipeline(run).record(name) as stage:
                (run.path / f"{name}.txt").write_text("done", "utf-8")
                stage.add_output(f"{name}.txt")
    prompts = load_prompt_sets(settings.prompts, settings.seed)
    open_pipeline = partial(preflight.open_pipeline, target, prompts, stages=("train",))
    with open_pipeline():
        pass
    manifest = (target.path / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="pip install wandb"), open_pipeline(fresh=True):
        pass
    settings.tokens.num_tokens += 1  # other tokens, so another training
    with pytest.raises(InputError, match="pip install wandb"), open_pipeline():
        pass
    assert (target.path / "manifest.json").read_bytes() == manifest


def test_a_finished_run_needs_no_device(tiny_model_folder, tmp_path, monkeypatch):
    """A run made on a GPU is read where there is none."""
    run = safesteer.align(str(tiny_model_folder), tmp_path / "run", **JOB_OF_SECONDS)
    monkeypatch.setattr(preflight, "pick_device", no_model)
    assert safesteer.align(str(run.path)).manifest["stages"] == run.manifest["stages"]
