"""Runs on the disk as training leaves them, of tiny models with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from safesteer.config.load import load_settings
from safesteer.files import save_tensors, write_json
from safesteer.models.files import fingerprint
from safesteer.models.load import ChatModel, load_model, save_model
from safesteer.runs.directory import RunDirectory

WIDTH = 32
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, new_chat_model: Callable[..., ChatModel]) -> MakeRun:
    """Makes a run: of a model (default: a tiny Llama), by LoRA or of all weights.

    `context` is what the teacher reads; `layer` where it is steered, None for nowhere.
    """

    def make(
        model: Any = None,
        *,
        method: str = "lora",
        context: str = "refusals",
        layer: int | None = 2,
        trained: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Path:
        tiny = new_chat_model()
        model = tiny.model if model is None else model
        base = tmp_path / "base"
        save_model(model.to(dtype), tiny.tokenizer, base)
        settings = load_settings(
            "default",
            model={"id": str(base)},
            teacher={
                "context": context,
                "strength": 0.0 if layer is None else 0.5,
                "demonstrations": 2,
            },
            train={"method": method},
        )
        path = tmp_path / "run"
        with RunDirectory.open(path, settings=settings, model=fingerprint(settings.model)) as run:
            if layer is not None:
                with run.stage("direction", {}) as stage:
                    stage.add_output(_write_direction(path, layer))
            if trained:
                with run.stage("train", {}) as stage:
                    stage.add_output(_write_student(path, base, method))
        return path

    return make


def _write_direction(path: Path, layer: int) -> Path:
    torch.manual_seed(1)
    folder = path / "direction"
    save_tensors(folder / "direction.safetensors", {"direction": torch.randn(WIDTH)})
    facts = {"layer": layer, "coefficient": 3.0, "method": "refuse-comply", "position": None}
    write_json(folder / "direction.json", facts)
    return folder


def _write_student(path: Path, base: Path, method: str) -> Path:
    loaded = load_model(str(base))
    if method == "full":
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.mul_(1.01)
        save_model(loaded.model, loaded.tokenizer, path / "model")
        return path / "model"
    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    student = get_peft_model(loaded.model, config)
    student.peft_config["default"].base_model_name_or_path = str(base)
    save_model(student, loaded.tokenizer, path / "adapter")
    return path / "adapter"
