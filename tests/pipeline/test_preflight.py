"""The front door: wrong input is reported before a model is loaded, for commands and Python."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import JOB_OF_SECONDS

import safesteer
from safesteer.cli.main import main
from safesteer.config.load import load_settings
from safesteer.distill import trackers
from safesteer.errors import InputError
from safesteer.memory.shape import read_shape
from safesteer.pipeline import preflight
from safesteer.pipeline.stages import Pipeline
from safesteer.prompts import load_prompt_sets
from safesteer.runs.artifacts import load_variants
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
    ("a judge without a model", {"evaluate": {"judges": ["endpoint="]}}, "names no model"),
    (
        "a source of no benchmark",
        {"evaluate": {"advanced": {"sources": {"advbnch": "a.csv"}}}},
        "did you mean 'advbench'",
    ),
    ("a layer too high", {"train": {"lora": {"first_layer": 4}}}, "layers 0 to 3"),
    (
        "modules of no model",
        {"train": {"lora": {"target_modules": ["query"]}}},
        "some of down_proj",
    ),
    (
        "a module that is none",
        {"train": {"lora": {"target_modules": ["q_proj", "query"]}}},
        "no layer is named query",
    ),
    (
        "a pattern and a layer",
        {"train": {"lora": {"target_modules": ".*q_proj", "first_layer": "steered"}}},
        "needs all-linear or a list",
    ),
    ("a pattern that is none", {"train": {"lora": {"target_modules": "(["}}}, "target_modules"),
    ("the output head", {"train": {"lora": {"target_modules": ["lm_head"]}}}, "output head"),
    ("a rank above the width", {"train": {"lora": {"r": 33}}}, "width of this model, 32"),
    ("more tokens than there are", {"tokens": {"num_tokens": 9999}}, "more than the vocabulary"),
    ("rollouts without room", {"train": {"max_completion_length": 2048}}, "reads 2048 tokens"),
    ("answers without room", {"evaluate": {"max_new_tokens": 2048}}, "reads 2048 tokens"),
    ("a direction's layer", {"direction": {"advanced": {"layers": [1, 4]}}}, "layers than 4"),
    ("no layer is left", {"direction": {"advanced": {"layers": [3]}}}, "leaves none of the layers"),
    (
        "prompts without room",
        {"train": {"advanced": {"max_prompt_length": 16}}},
        "no harmful prompt of the training has at most",
    ),
    ("a device that is none", {"model": {"device": "meta"}}, "cannot be used"),
    ("a second CPU", {"model": {"device": "cpu:1"}}, "cannot be used"),
    (
        "wrong refusals without anchors",
        {"train": {"wrong_refusals": "repair", "anchor_share": 0.0}},
        "needs harmless prompts",
    ),
    (
        "harmful requests called harmless",
        {"prompts": {"harmless": "builtin:harmful"}, "train": {"wrong_refusals": "repair"}},
        "are harmful prompts",
    ),
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


@pytest.fixture
def with_template(tiny_model_folder, tmp_path):
    """Makes the tiny model's folder with a part of its chat template replaced."""

    def make(old: str, new: str) -> Path:
        folder = tmp_path / "with-template"
        shutil.copytree(tiny_model_folder, folder)
        file = folder / "chat_template.jinja"
        assert old in file.read_text("utf-8")
        file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")
        return folder

    return make


LOOP = "{% for message in messages %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}"
TURNS = '{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "'


@pytest.mark.parametrize(
    ("old", "new", "sections", "said"),
    [
        (LOOP, LOOP + "Hello{{ 1 / 0 }}", {}, "cannot render a single user turn"),
        ("message['content']", "'Hello'", {}, "leaves out the user's text"),
        (
            LOOP,
            NO_SYSTEM + "{% endif %}" + LOOP,
            {"teacher": {"context": "system-prompt"}},
            r"teacher\.context = 'system-prompt' with .*cannot render .*system, user.*No system",
        ),
        (
            LOOP,
            "{% for message in messages if message['role'] != 'system' %}",
            {"teacher": {"context": "system-prompt"}},
            r"teacher\.context = .*leaves out the system message",
        ),
        (LOOP, NO_SYSTEM + "{% endif %}" + LOOP, {"prompts": {}}, r"prompts\.harmful: .*render"),
    ],
)
def test_a_conversation_without_a_form_in_the_template_is_found_first(
    old, new, sections, said, with_template, tmp_path, monkeypatch
):
    """The tokenizer alone tells; no weights are loaded and no folder is left."""
    monkeypatch.setattr("safesteer.runs.artifacts.load_model", no_model)
    if "prompts" in sections:
        rows = [TURNS + f'Harm number {number}?"}}]}}' for number in range(30)]
        (tmp_path / "prompts.jsonl").write_text("\n".join(rows), "utf-8")
        sections = {"prompts": {"harmful": str(tmp_path / "prompts.jsonl")}}
    with pytest.raises(InputError, match=said) as raised:
        safesteer.align(str(with_template(old, new)), tmp_path / "run", **sections)
    assert "Try: " in str(raised.value) and not (tmp_path / "run").exists()


def test_a_run_keeps_the_date_of_its_template(
    with_template, new_prompt_sets, tmp_path, monkeypatch
):
    """Resumed on another day it reads the same tokens, in stages, commands and exports."""

    def on(day: int) -> None:
        today = type("Day", (datetime,), {"now": classmethod(lambda cls: datetime(2026, 12, day))})
        monkeypatch.setattr("safesteer.models.chat.datetime", today)

    folder = with_template(LOOP, "{{ strftime_now('%d %b %Y') }}" + LOOP)
    settings = load_settings(model={"id": str(folder)}, prompts=new_prompt_sets(6, 3))
    target = Target(settings, tmp_path / "run", True)
    prompts = load_prompt_sets(settings.prompts, settings.seed)
    read = []
    for day in (1, 2):
        on(day)
        with preflight.open_pipeline(target, prompts, stages=("direction",)) as pipeline:
            read.append(pipeline.chat.text([{"role": "user", "content": "Hello."}]))
            assert pipeline.model.chat is pipeline.chat
    on(3)
    (variant,) = load_variants(target, ["base"])
    read.append(variant.model.chat.text([{"role": "user", "content": "Hello."}]))
    assert len(set(read)) == 1 and "01 Dec 2026" in read[0]
    assert RunDirectory.load(target.path).manifest["model"]["date"] == "2026-12-01T00:00:00"
    with preflight.open_pipeline(target, prompts, stages=("direction",), fresh=True) as pipeline:
        assert "03 Dec 2026" in pipeline.chat.text([{"role": "user", "content": "Hello."}])


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
    shape = read_shape(settings.model)
    preflight.check_disk(tmp_path, settings, shape)  # an adapter fits into the spare megabyte
    settings.train.method = "full"
    with pytest.raises(InputError, match=r"Try: another --output-dir, or train.method=lora"):
        preflight.check_disk(tmp_path, settings, shape)
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
