"""Runs on the disk as training leaves them, of tiny models with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import TINY
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from safesteer.cli.main import main
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


SIZES = {**TINY, "num_key_value_heads": 1, "initializer_range": 0.2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
# Constructor, configuration, and what is not as the tiny Llama has it.
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    # More rows than tokens.
    "llama-tied-padded": (
        LlamaForCausalLM,
        LlamaConfig,
        {"tie_word_embeddings": True, "vocab_size": 340},
    ),
    "llama3-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LINEAR_ROPE}),
    "llama-biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 24}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 16}),
}


@pytest.fixture
def build(tokenizer):
    """Makes one of `MODELS`, with random biases."""

    def make(name):
        torch.manual_seed(0)
        constructor, config, changes = MODELS[name]
        model = constructor(config(**{**SIZES, "vocab_size": len(tokenizer), **changes}))
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        return model

    return make


@pytest.fixture
def command(capsys):
    """Runs `safesteer export`; gives exit code, stdout and the one line on stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["export", *map(str, arguments)])
        out, err = capsys.readouterr()
        if code:
            assert err.count("\n") == 1 and "Traceback" not in err, err
        return code, out, err.strip()

    return run
