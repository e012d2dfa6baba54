"""Weights with a hole in them are refused wherever they are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError
from safesteer.models.load import ChatModel, load_model
from safesteer.models.weights import load_adapter

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def damaged(tiny_model_folder: Path, tmp_path: Path) -> Any:
    """Make a copy of the tiny model with other tensors, another configuration, or both."""

    def make(edit: Any = None, **config: Any) -> str:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model_folder, folder)
        rewrite(folder / "model.safetensors", edit or (lambda tensors: tensors))
        values = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**values, **config}), "utf-8")
        return str(folder)

    return make


def rewrite(path: Path, edit: Any) -> None:
    tensors = edit(load_file(path))
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"format": "pt"})


def without(part: str) -> Any:
    return lambda tensors: {name: t for name, t in tensors.items() if part not in name}


def poisoned(tensors: Tensors) -> Tensors:
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    return tensors


@pytest.mark.parametrize(
    "edit, config, says",
    [
        (without("layers.1.mlp.up_proj"), {}, r"miss 1 tensors .*layers\.1\.mlp\.up_proj\.weight"),
        (without("lm_head"), {}, r"miss 1 tensors .*\(lm_head\.weight\)"),
        (lambda t: {f"x.{name}": v for name, v in t.items()}, {}, r"miss \d+ tensors"),
        (None, {"num_hidden_layers": 6}, r"miss 18 tensors .*layers\.4"),
        (None, {"num_hidden_layers": 2}, r"hold 18 tensors .*layers\.2"),
        (None, {"model_type": "gpt_neox"}, r"miss \d+ tensors that a GPTNeoX"),
        (poisoned, {}, r"layers\.1\.mlp\.up_proj\.weight holds NaN"),
    ],
)
def test_a_model_with_a_hole_is_refused(damaged, edit, config, says):
    with pytest.raises(InputError, match=says):
        load_model(damaged(edit, **config))


def test_a_tied_output_matrix_is_not_missing(damaged):
    folder = damaged(without("lm_head"), tie_word_embeddings=True)
    assert load_model(folder).model.get_output_embeddings().weight.isfinite().all()


@pytest.fixture
def adapter(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of the tiny model."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "edit, says",
    [
        (without("layers.1"), r"miss 4 tensors of the adapter .*layers\.1"),
        (
            lambda t: {**t, "base_model.model.model.layers.9.x.lora_A.weight": torch.ones(2, 2)},
            r"hold 1 tensors for which this base has no layer .*layers\.9",
        ),
        (lambda t: {name: v * float("inf") for name, v in t.items()}, "holds NaN or infinity"),
    ],
)
def test_an_adapter_with_a_hole_is_refused(adapter, tiny_model_folder, edit, says):
    rewrite(adapter / "adapter_model.safetensors", edit)
    with pytest.raises(InputError, match=says):
        load_adapter(AutoModelForCausalLM.from_pretrained(tiny_model_folder), adapter)


def test_an_adapter_as_base_is_checked_too(adapter):
    rewrite(adapter / "adapter_model.safetensors", without("layers.1"))
    with pytest.raises(InputError, match="miss 4 tensors of the adapter"):
        load_model(str(adapter))


def test_a_whole_adapter_loads(adapter, tiny_model_folder):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    assert load_adapter(base, adapter).peft_config


def test_a_pickled_adapter_is_not_read(adapter, tiny_model_folder):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors does not exist"):
        load_adapter(AutoModelForCausalLM.from_pretrained(tiny_model_folder), adapter)


def test_a_weight_that_float16_does_not_hold_names_the_type(damaged):
    """It is finite in the file."""

    def large(tensors):  # type: ignore[no-untyped-def]
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
        return tensors

    settings = ModelSettings(id=damaged(large), dtype="float16", device="cpu")
    with pytest.raises(InputError, match=r"infinity in float16\. Try: --dtype bfloat16"):
        load_model(settings)
    load_model(settings.model_copy(update={"dtype": "bfloat16"}))


def test_an_adapter_that_overflows_in_merging_is_refused(adapter):
    """Both factors are finite."""
    rewrite(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: torch.full_like(t, 1e30) for name, t in tensors.items()},
    )
    with pytest.raises(InputError, match=r"q_proj\.weight holds NaN or infinity"):
        load_model(str(adapter))


def test_a_model_in_memory_is_checked(tiny_chat_model):
    tiny_chat_model.model.model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match=r"LlamaForCausalLM: the weight model\.norm\.weight"):
        ChatModel.wrap(tiny_chat_model.model, tiny_chat_model.tokenizer)
