"""Source of an export: a run's aligned model or teacher, on the CPU in float32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safesteer.config.settings import ModelSettings
from safesteer.direction.vector import Direction
from safesteer.events import Reporter
from safesteer.inference.variant import ModelVariant
from safesteer.models.chat import ChatRenderer
from safesteer.models.files import whole_model
from safesteer.models.load import auto_class, copy_base_files, merge_adapter
from safesteer.models.quantization import (
    dequantized,
    loaded_bits,
    loading_arguments,
    match_training,
    quantization_of,
)
from safesteer.models.quiet import quiet_libraries
from safesteer.models.weights import load_weights
from safesteer.runs.artifacts import RunArtifacts
from safesteer.runs.directory import RunDirectory


@dataclass(frozen=True)
class Source:
    """A variant of a run, and the files of its base."""

    run: Path  # folder of the run
    settings: ModelSettings  # of the run's base, with dtype and device of the export
    variant: ModelVariant  # the aligned model or the teacher; exports may change its weights
    kind: str  # what the base is read from, "gguf" or "folder"
    base: Path  # that file or folder; below all adapters, if the run's base is itself an adapter
    adapters: tuple[Path, ...] = ()  # folders of the adapters merged into `base`, in this order

    @property
    def chat(self) -> ChatRenderer:
        """The run's chat renderer."""
        return self.variant.model.chat

    @property
    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        return self.variant.model.tokenizer

    @property
    def direction(self) -> Direction | None:
        """The direction that steers the variant, if any."""
        return self.variant.teacher.direction if self.variant.teacher else None

    @property
    def base_arguments(self) -> dict[str, str]:
        """The arguments with which ``from_pretrained`` finds the base."""
        if self.kind == "folder":
            return {"pretrained_model_name_or_path": str(self.base)}
        where = {"gguf_file": self.base.name}
        return {"pretrained_model_name_or_path": str(self.base.parent), **where}

    @property
    def bits(self) -> str:
        """The quantization of the run's base: none, 8bit or 4bit."""
        return loaded_bits(self.settings, self.kind, self.base)

    def load_base(self) -> Any:
        """The base in float32, loaded as a user would with transformers and peft."""
        from transformers import AutoModelForCausalLM

        trust = self.settings.trust_remote_code
        auto = AutoModelForCausalLM if self.kind == "gguf" else auto_class(self.base, trust)
        arguments: dict[str, Any] = dict(self.base_arguments)
        model = load_weights(
            auto,
            arguments.pop("pretrained_model_name_or_path"),
            **arguments,
            dtype=torch.float32,
            device_map={"": "cpu"},
            trust_remote_code=trust,
            **loading_arguments(self.settings.quantization, torch.float32),
        )
        if quantization_of(model) is not None:
            match_training(model)
        for adapter in self.adapters:
            model = merge_adapter(model, adapter)
        return model

    def stored_dtype(self) -> torch.dtype:
        """The dtype of the base's files, float16 for a GGUF file.

        For the aligned model of a run that trained all weights, the dtype of these.
        """
        full = self.run / "model" / "config.json"
        trained = self.variant.name == "aligned" and full.is_file()
        file = full if trained else self.base / "config.json"
        if not file.is_file():
            return torch.float16
        config = json.loads(file.read_text("utf-8"))
        config = {**config.get("text_config", {}), **config}
        name = config.get("dtype") or config.get("torch_dtype") or "float32"
        dtype: torch.dtype = getattr(torch, name)
        return dtype


def copy_files(source: Source, target: Path) -> None:
    """Copy what the base's folder holds beside weights and tokenizer into an export."""
    if source.kind == "folder":
        copy_base_files(source.base, target)


def load_source(run: RunDirectory, name: str, reporter: Reporter, *, dequantize: bool) -> Source:
    """Load the variant `name` of a trained run in float32.

    In float32 rounding cannot hide a change: merging an adapter into bfloat16 weights loses part
    of it. With `dequantize`, layers of a quantized base become ordinary ones of the same values.
    Raises InputError when the run is not trained, or its base no longer exists.
    """
    model = run.settings.model.model_copy(update={"dtype": "float32", "device": "cpu"})
    run.settings = run.settings.model_copy(update={"model": model})
    artifacts = RunArtifacts(run, reporter)
    if dequantize:
        with quiet_libraries():
            artifacts.model.model = dequantized(artifacts.model.model)
    kind, base, adapters = whole_model(model)
    return Source(run.path, model, artifacts.variant(name), kind, base, tuple(adapters))
