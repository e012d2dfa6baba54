"""Rollouts by vLLM, against a stand-in for it: what is sent, when, and that the base stays.

No real vLLM runs here. With greedy answers a training by vLLM is one by transformers, number for
number.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import requests
import torch
from tiny import plain_training
from trl.generation import vllm_client, vllm_generation
from trl.trainer import distillation_trainer

from safesteer.cli.main import main
from safesteer.config.load import load_settings
from safesteer.config.settings import ModelSettings, TrainSettings
from safesteer.direction.vector import Direction
from safesteer.distill import config
from safesteer.distill import vllm as rollouts
from safesteer.distill.lora import with_lora
from safesteer.distill.plan import TrainingPrompts
from safesteer.distill.train import train
from safesteer.distill.vllm import check_model, merged_weights
from safesteer.errors import InputError, SafeSteerError
from safesteer.models.load import load_model
from safesteer.teacher import Teacher

spec = importlib.util.spec_from_file_location(
    "vllm_stand_in", Path(__file__).with_name("vllm_stand_in.py")
)
stand_in = importlib.util.module_from_spec(spec)
sys.modules["vllm_stand_in"] = stand_in
spec.loader.exec_module(stand_in)

TOKENS = [10, 40, 77, 120, 200, 305]
ENDS = range(100, 160)  # many tokens end a turn, so that completions have different lengths
TIMING = {"seconds", "tokens_per_second"}


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in under vLLM's name, and no question about a CUDA device."""
    for name, module in stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(rollouts, "_check_device", lambda device: None)
    # TRL looks for vLLM when these are imported.
    importlib.reload(vllm_client)
    importlib.reload(vllm_generation)
    connect = vllm_client.VLLMClient.init_communicator
    monkeypatch.setattr(
        vllm_client.VLLMClient, "init_communicator", lambda self, device: connect(self, "cuda")
    )
    stand_in.ENGINES.clear()
    yield stand_in
    monkeypatch.undo()
    importlib.reload(vllm_client)
    importlib.reload(vllm_generation)


@pytest.fixture
def server(vllm, tiny_model_folder):
    made = vllm.Server(str(tiny_model_folder))
    yield made
    made.close()


@pytest.fixture
def synced(monkeypatch):
    """A merged copy of the student at every sync: {name: weight}."""
    students = []
    generation = distillation_trainer.VLLMGeneration  # as it was before any reload
    original = generation.sync_weights

    def record(self):
        student = copy.deepcopy(self.model)
        if hasattr(student, "merge_and_unload"):
            student = student.merge_and_unload(safe_merge=True)
        students.append(dict(student.named_parameters()))
        original(self)

    monkeypatch.setattr(generation, "sync_weights", record)
    return students


@pytest.fixture
def run(tiny_model_folder, tmp_path, monkeypatch):
    """Trains the tiny model; gives the student, the lines of metrics.jsonl, and the base before."""

    monkeypatch.setattr(config, "WARMUP_RATIO", 0.0)
    monkeypatch.setattr(config, "ROLLOUT_TEMPERATURE", 1e-4)  # as good as greedy

    def run(rollouts="vllm", name="run", dtype="float32", **changes):
        model = load_model(str(tiny_model_folder))
        model.model.to(getattr(torch, dtype))
        model.model.generation_config.eos_token_id = [model.tokenizer.eos_token_id, *ENDS]
        before = {name: p.clone() for name, p in model.model.named_parameters()}
        settings = plain_training(
            **{
                "rollouts": rollouts,
                "max_steps": 4,
                "prompts_per_step": 2,
                "num_generations": 2,
                "anchor_share": 0.5,
                "learning_rate": 1e-2,
                "max_completion_length": 7,
                "short_rollout_length": 3,
                "lora": {"r": 4, "alpha": 8},
                "advanced": {"short_rollout_share": 0.5, "vllm": changes.pop("vllm", {})},
                **changes,
            }
        )
        direction = torch.randn(32, generator=torch.Generator().manual_seed(7)) * 2
        student = train(
            model,
            Teacher(Direction(direction, 2)),
            TOKENS,
            TrainingPrompts(
                *(
                    [({"role": "user", "content": f"{kind} {'very ' * i}{i}"},) for i in range(6)]
                    for kind in ("harmful", "harmless")
                )
            ),
            settings,
            output=tmp_path / name,
        )
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return student, [json.loads(line) for line in lines], before

    return run


def same_metrics(found, expected):
    assert len(found) == len(expected)
    for line, other in zip(found, expected, strict=True):
        assert line.keys() == other.keys()
        for key in line.keys() - TIMING:
            assert line[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), key


def base_of(student):
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p
        for name, p in student.named_parameters()
        if "lora_" not in name
    }


def same_weights(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("method", "window", "micro"), [("lora", 1, None), ("lora", 2, 1), ("full", 2, 1)]
)
def test_training_with_vllm_is_training_with_transformers(method, window, micro, vllm, synced, run):
    """Losses and all, which needs: weights sent before every window, length and ends of answers."""
    changes = {
        "method": method,
        "steps_per_generation": window,
        "per_device_train_batch_size": micro,
    }
    student, found, before = run(**changes)
    (llm,) = vllm.ENGINES
    assert len(synced) == llm.resets == 4 // window
    assert [p.max_tokens for p in llm.engine.asked] == [3, 7] * (2 // window)
    assert all(p.temperature == 1e-4 and p.top_p == 1 for p in llm.engine.asked)
    assert llm.engine.loads == [set(before)] * len(synced) + [set()]
    assert same_weights(dict(llm.engine.model.named_parameters()), synced[-1])
    assert llm.ended and llm.gpu_memory_utilization == 0.3
    _, expected, _ = run("transformers", name="plain", **changes)
    same_metrics(found, expected)
    assert len({line["completion_length"] for line in found}) > 1
    assert not same_weights(synced[0], synced[-1])  # the student moved
    if method == "lora":
        assert same_weights(base_of(student), before)


def test_training_with_a_server_is_training_with_transformers(server, synced, run):
    where = {"mode": "server", "server_base_url": server.url + "/"}
    student, found, before = run(vllm=where, steps_per_generation=2)
    assert same_weights(base_of(student), before)
    assert len(synced) == 2 and server.engine.loads == [set(before)] * 2
    assert same_weights(dict(server.engine.model.named_parameters()), synced[-1])
    window = [
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
        "/v1/completions",
    ]
    assert server.calls == ["/init_weight_transfer_engine", *window, *window]
    _, expected, _ = run("transformers", name="plain", steps_per_generation=2)
    same_metrics(found, expected)


def test_the_base_keeps_its_bits_in_bfloat16(vllm, synced, run):
    student, found, before = run(dtype="bfloat16")
    assert len(synced) == 4 and len(found) == 4
    assert same_weights(base_of(student), before)
    # What was sent is the merged student all the same.
    assert {p.dtype for p in synced[-1].values()} == {torch.bfloat16}
    sent = {name: p.bfloat16() for name, p in vllm.ENGINES[0].engine.model.named_parameters()}
    assert same_weights(sent, synced[-1])
    # What TRL would do loses bits.
    student.merge_adapter()
    student.unmerge_adapter()
    assert not same_weights(base_of(student), before)


def test_what_a_launcher_sets_is_not_left_behind(vllm, run):
    before = dict(os.environ)
    run(max_steps=1)
    left = {k: v for k, v in os.environ.items() if before.get(k) != v}
    assert left in ({}, {"VLLM_NO_USAGE_STATS": "1"})
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_names_and_weights_of_a_student(new_chat_model):
    """Adapters on some layers alone, tied embeddings, a trained copy of a module."""
    model = new_chat_model(tie_word_embeddings=True).model
    before = {name: p.clone() for name, p in model.named_parameters()}
    student = with_lora(
        model, plain_training(lora={"first_layer": 2, "target_modules": ["q_proj"]}), 0
    )
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    sent = dict(merged_weights(student))
    assert sent.keys() == before.keys()
    moved = {name for name in sent if not torch.equal(sent[name], before[name])}
    assert moved == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (2, 3)}
    merged = copy.deepcopy(student).merge_and_unload()
    assert same_weights(dict(merged.named_parameters()), sent)
    assert same_weights(base_of(student), before)
    assert not any(getattr(module, "merged", False) for module in student.modules())


def test_a_server_that_goes_away_is_one_line(server, run, monkeypatch):
    def fail(*args, **kwargs):
        raise requests.exceptions.ConnectionError("gone")

    monkeypatch.setattr(vllm_client.VLLMClient, "generate", fail)
    with pytest.raises(SafeSteerError, match="went away") as caught:
        run(vllm={"mode": "server", "server_base_url": server.url})
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"takes_weights": False}, "takes no weights. Try: start it with"),
        ({"development": False}, "VLLM_SERVER_DEV_MODE=1"),
        ({"short": True}, "has room for 518 tokens"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_before_training(change, message, server, run):
    if "short" in change:
        server.engine.max_model_len = 518  # 512 + 7 are needed
    vars(server).update(change)
    with pytest.raises(InputError, match=message):
        run(vllm={"mode": "server", "server_base_url": server.url})
    assert server.calls == []


def test_quantized_weights_are_refused(vllm, run, monkeypatch):
    original = rollouts.adapt

    def adapt(generation, ends):
        weight = generation.model.get_submodule("base_model.model.model.norm").weight
        weight.data = weight.data.to(torch.int8)
        original(generation, ends)

    monkeypatch.setattr(rollouts, "adapt", adapt)
    with pytest.raises(InputError, match="quantized"):
        run()


def test_models_that_cannot_be_sent_are_refused(tiny_model_folder, tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF and more")
    packed = shutil.copytree(tiny_model_folder, tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (packed / "config.json").write_text(json.dumps(config))
    check_model(ModelSettings(id=str(tiny_model_folder)))
    for settings, message in (
        (ModelSettings(id=str(gguf)), "a GGUF file"),
        (ModelSettings(id=str(packed)), "quantized"),
        (ModelSettings(id=str(tiny_model_folder), device="cuda:1"), "CUDA_VISIBLE_DEVICES"),
    ):
        with pytest.raises(InputError, match=message):
            check_model(settings)
    for model in ({"advanced": {"device_map": "auto"}}, {"quantization": "4bit"}):
        with pytest.raises(InputError, match=r"train\.rollouts = .vllm. and model"):
            load_settings(model=model, train={"rollouts": "vllm"})


def test_weights_that_are_spread_are_refused(vllm, monkeypatch):
    monkeypatch.setattr(rollouts.distributed, "layout", lambda: "fsdp")
    with pytest.raises(InputError, match="fsdp splits them"):
        rollouts.check_rollouts(TrainSettings(rollouts="vllm"), torch.device("cuda"))


def test_the_command_trains_with_vllm(
    vllm, tiny_model_folder, new_prompt_sets, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    path = tmp_path / "run"
    arguments = [
        "train",
        str(tiny_model_folder),
        f"--output-dir={path}",
        "--rollouts=vllm",
        "--max-steps=2",
        "--num-tokens=10",
        "--quiet",
        *(f"--{name}={file}" for name, file in new_prompt_sets(16, 8).items()),
        "--set=teacher.strength=0",
        "--set=teacher.context=system-prompt",
        "--set=tokens.advanced.num_prompts=4",
        "--set=train.advanced.vllm.gpu_memory_utilization=0.5",
        "--set=train.max_completion_length=4",
        "--set=train.prompts_per_step=2",
        "--set=train.anchor_share=0.5",
        "--set=train.num_generations=2",
    ]
    assert main(arguments) == 0, capsys.readouterr().err
    (llm,) = vllm.ENGINES
    assert llm.resets == 2 and llm.gpu_memory_utilization == 0.5 and llm.ended
    assert len((path / "train" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (path / "adapter" / "adapter_model.safetensors").is_file()
