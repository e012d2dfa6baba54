"""A model that arrives as an adapter: its weights, adapter included, are the base of the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import JOB_OF_SECONDS, make_model, make_tokenizer, plain

from safesteer.config.load import load_settings
from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError
from safesteer.export.commands import commands
from safesteer.export.formats import export
from safesteer.models.files import fingerprint
from safesteer.models.load import load_model
from safesteer.models.loading_code import loading_code
from safesteer.pipeline.stages import Pipeline
from safesteer.runs.artifacts import load_variants
from safesteer.runs.directory import RunDirectory
from safesteer.runs.target import find_target

IDS = torch.arange(10, 30)[None]
PROMPT = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):  # type: ignore[no-untyped-def]
    """A folder `adapter` beside its base `base`; the adapter changes the model a lot."""
    folder = tmp_path_factory.mktemp("adapted")
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="module")
def run(adapter, new_prompt_sets, tmp_path_factory):  # type: ignore[no-untyped-def]
    """A finished run on the adapter."""
    settings = load_settings(
        model={"id": str(adapter), "dtype": "float32", "device": "cpu"},
        prompts=new_prompt_sets(6, 3),
        **plain(**JOB_OF_SECONDS),
    )
    folder = tmp_path_factory.mktemp("run") / "run"
    model = fingerprint(settings.model)
    with RunDirectory.open(folder, settings=settings, model=model) as directory:
        Pipeline(directory).run_all()
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def float32(name: Path) -> Any:
    return load_model(ModelSettings(id=str(name), dtype="float32", device="cpu"))


def test_identity_covers_the_adapter_and_its_base(adapter, tmp_path):
    """Either file changed by one number is another model."""
    shutil.copytree(adapter.parent, tmp_path / "copy")
    copy, base = tmp_path / "copy" / "adapter", tmp_path / "copy" / "base"
    config = json.loads((copy / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (copy / "adapter_config.json").write_text(json.dumps(config))

    def identity() -> str | None:
        return fingerprint(ModelSettings(id=str(copy)))["sha256"]

    seen = [identity()]
    for file in (base / "model.safetensors", copy / "adapter_model.safetensors"):
        weights = load_file(file)
        next(iter(weights.values())).view(-1)[0] += 1
        save_file(weights, file, {"format": "pt"})
        seen.append(identity())
    assert len(set(seen)) == 3
    assert fingerprint(ModelSettings(id=str(copy)))["adapter_of"] == str(base)
    assert "adapter_of" not in fingerprint(ModelSettings(id=str(base)))


def test_the_base_of_a_run_is_the_adapter_merged(run, adapter):
    """Base and teacher have the user's adapter in; the aligned model ours on top."""
    target = find_target(str(run))
    aligned, base = load_variants(target, ["aligned", "base"])
    merged = float32(adapter)
    with base.active():
        assert torch.equal(logits(base.runner), logits(merged.model))
    assert not torch.allclose(logits(merged.model), logits(float32(adapter.parent / "base").model))
    assert not torch.allclose(logits(aligned.runner), logits(merged.model))
    assert RunDirectory.load(run).manifest["model"]["adapter_of"] == str(adapter.parent / "base")


def test_the_students_adapter_says_what_it_belongs_on(run, adapter):
    """By a name that PEFT cannot load: it would drop the user's adapter without an error."""
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"merged:{adapter}"
    with pytest.raises(Exception, match="merged:"):
        AutoPeftModelForCausalLM.from_pretrained(run / "adapter")
    card = (run / "README.md").read_text()
    assert "Load this adapter on the merged weights" in card and "vllm serve" not in card


@torch.no_grad()
def test_every_way_to_the_aligned_model_gives_the_same_weights(run, tmp_path):
    """The run, its adapter folder as a model, the code in the card, and both exports."""
    (aligned,) = load_variants(find_target(str(run)), ["aligned"])
    expected = logits(aligned.runner)
    assert torch.allclose(logits(float32(run / "adapter").model), expected, atol=1e-4)
    names: dict[str, Any] = {}
    exec("\n".join(loading_code(run, find_target(str(run)).settings.model)), names)
    assert torch.allclose(logits(names["model"].eval()), expected, atol=1e-4)
    made = export(run, "merged", tmp_path / "merged")
    assert made.dtype == "float32" and made.difference < 1e-3
    assert torch.allclose(logits(float32(tmp_path / "merged").model), expected, atol=1e-4)
    assert export(run, "adapter", tmp_path / "adapter").difference < 1e-3
    with pytest.raises(InputError, match="--format teacher"):
        export(run, "steered", tmp_path / "steered")


def test_command_lines_serve_merged_weights(run, adapter):
    """No tool can put the new adapter beside the old one."""
    found = RunDirectory.load(run)
    lines = commands(run, found.settings, found.manifest["model"])
    assert "--enable-lora" not in lines and "peft" not in lines
    assert "--model_args pretrained=adapter-safesteer-merged" in lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no base", "does not name the adapter.s base"),
        ("pickle", "pickled weights"),
        ("base gone", "no such model file or folder"),
    ],
)
def test_an_adapter_that_cannot_be_a_base(adapter, tmp_path, change, said):
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((copy / "adapter_config.json").read_text())
    if change == "no base":
        config["base_model_name_or_path"] = None
    elif change == "base gone":
        config["base_model_name_or_path"] = str(tmp_path / "gone")
    else:
        (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    (copy / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said):
        load_model(str(copy))
