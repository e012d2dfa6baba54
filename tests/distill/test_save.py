"""Saving a student."""

from __future__ import annotations

import json

import peft
import pytest
from tiny_training import (
    run,
)

from safesteer.config.settings import ModelSettings
from safesteer.distill.save import save_student
from safesteer.inference.variant import ModelVariant

pytestmark = pytest.mark.usefixtures("no_warmup")


def test_nothing_is_asked_of_the_hub(tiny_chat_model, tmp_path, monkeypatch):
    """PEFT looks a base up by its name when it saves; checkpoints and adapters do without."""
    asked = []
    monkeypatch.setattr(
        peft.utils.save_and_load, "check_file_exists_on_hf_hub", lambda *args: asked.append(args)
    )
    monkeypatch.setattr("safesteer.distill.save.base_name", lambda base: "owner/name")
    tiny_chat_model.model.name_or_path = "owner/name"
    student, _ = run(tiny_chat_model, tmp_path / "train", save_steps=1)
    assert len(list((tmp_path / "train").glob("checkpoint-*/adapter_model.safetensors"))) == 2
    adapter = tmp_path / "adapter"
    save_student(student, tiny_chat_model.tokenizer, adapter, ModelSettings())
    assert (
        json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "owner/name"
    )
    assert ModelVariant("aligned", tiny_chat_model, student).identity
    assert asked == []
