"""What an export is made from: a run's aligned model or teacher, on the CPU in float32.

Knows nothing of formats.
"""

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
from safesteer.models.files import adapter_base, locate
from safesteer.models.load import auto_class, copy_processor_files, merge_adapter, quiet_libraries
from safesteer.models.quantization import (
    dequantized,
    loaded_bits,
    loading_arguments,
    match_training,
    quantization_of,
)
from safesteer.runs.artifacts import RunArtifacts
from safesteer.runs.directory import RunDirectory


@dataclass(frozen=True)
class Source:
    """A variant of a run, and where its base is.

    Attributes:
        run: folder of the run.
        settings: how the run's base is named and loaded.
        variant: the aligned model or the teacher; exports may change its weights.
        kind: "gguf" or "folder", what the base is read from.
        base: that file or folder; of a base that is an adapter, what its weights were merged into.
        adapters: folders of the adapters that were merged into `base`, the first one first.
    """

    run: Path
    settings: ModelSettings
    variant: ModelVariant
    kind: str
    base: Path
    adapters: tuple[Path, ...] = ()

    @property
    def chat(self) -> ChatRenderer:
        """Renders messages as the run does."""
        return self.variant.model.chat

    @property
    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        return self.variant.model.tokenizer

    @property
    def direction(self) -> Direction | None:
        """What steers the variant, None where nothing does."""
        return self.variant.teacher.direction if self.variant.teacher else None

    @property
    def base_arguments(self) -> dict[str, str]:
        """How ``from_pretrained`` finds the base: a folder's path, and a GGUF file in it."""
        if self.kind == "gguf":
            return {
                "pretrained_model_name_or_path": str(self.base.parent),
                "gguf_file": self.base.name,
            }
        return {"pretrained_model_name_or_path": str(self.base)}

    @property
    def bits(self) -> str:
        """none, or the bits that the run's base is held in: 8bit or 4bit."""
        return loaded_bits(self.settings, self.kind, self.base)

    def load_base(self) -> Any:
        """The base in float32, with transformers and peft alone, as a user would load it."""
        from transformers import AutoModelForCausalLM

        trust = self.settings.trust_remote_code
        auto = AutoModelForCausalLM if self.kind == "gguf" else auto_class(self.base, trust)
        model: Any = auto.from_pretrained(
            **self.base_arguments,
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
        """The type that the weights are stored in; float16 for a base from a GGUF file.

        All weights trained have a type of their own, that of the run's folder `model`.
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


def copy_processor(source: Source, target: Path) -> None:
    """Put the files of the base's processor, which turns pictures into tokens, into an export."""
    if source.kind == "folder":
        copy_processor_files(source.base, target)


def load_source(
    run: RunDirectory, name: str, reporter: Reporter | None = None, *, whole: bool = True
) -> Source:
    """The variant `name` (aligned, teacher) of a run.

    `whole` turns the layers of a base in 8 or 4 bits into ordinary ones of the same values.

    Float32, since rounding would otherwise hide what an export changes: merging an adapter into
    bfloat16 weights loses part of it. Takes four bytes of memory per parameter.

    Raises InputError when the run has not come that far, or its base is not there any more.
    """
    model = run.settings.model.model_copy(update={"dtype": "float32", "device": "cpu"})
    run.settings = run.settings.model_copy(update={"model": model})
    pipeline = RunArtifacts(run, reporter)
    if whole:
        with quiet_libraries():
            pipeline.model.model = dequantized(pipeline.model.model)
    kind, base = locate(model)
    adapters: list[Path] = []
    while kind == "folder" and (below := adapter_base(base)) is not None:
        adapters.insert(0, base)
        kind, base = locate(below)
    return Source(run.path, model, pipeline.variant(name), kind, base, tuple(adapters))
