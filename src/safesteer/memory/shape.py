"""Dimensions of a model that decide its memory, from the model or from its config.json.

A configuration is built on torch's meta device, where tensors have shapes but no data, so that even
an 8B model needs neither its weights nor much time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from safesteer.config.settings import LoraSettings, ModelSettings
from safesteer.errors import InputError, reason
from safesteer.models.files import BUILTIN, adapter_base, builtin_path
from safesteer.models.gguf import load_gguf_config
from safesteer.models.layers import find_blocks, text_config
from safesteer.models.quiet import quiet_libraries


@dataclass(frozen=True)
class Linear:
    """One linear layer of a block."""

    layer: int
    name: str  # the last part of its path: q_proj
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """Numbers in its matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """The dimensions of a causal language model."""

    parameters: int  # all weights, a tied output matrix counted once
    width: int  # D, of the residual stream
    intermediate: int  # F, of the feed-forward part
    layers: int  # L, the number of blocks
    heads: int  # H, of the queries
    kv_heads: int  # K, of the keys and values
    head_dim: int  # d, of one head
    vocabulary: int  # V, rows of the output matrix
    tied: bool  # whether the output matrix is the embedding matrix
    linears: tuple[Linear, ...]  # the linear layers inside the blocks
    blocks: tuple[int, ...]  # parameters of each block, experts and norms included
    positions: int | None = None  # the most tokens of a sequence, if the model has a limit

    @classmethod
    def of(cls, model: Any) -> Shape:
        """The shape of a model without an adapter, on any device."""
        config, blocks = text_config(model), find_blocks(model)
        heads = _number(config, "num_attention_heads", 1)
        head = model.get_output_embeddings().weight
        width = head.shape[1]
        linears = tuple(
            Linear(layer, name.rpartition(".")[2], *_sides(module))
            for layer, block in enumerate(blocks)
            for name, module in block.named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
        )
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            width=width,
            intermediate=_number(config, "intermediate_size", 4 * width),
            layers=len(blocks),
            heads=heads,
            kv_heads=_number(config, "num_key_value_heads", heads),
            head_dim=_number(config, "head_dim", width // heads),
            vocabulary=head.shape[0],
            tied=head is model.get_input_embeddings().weight,
            linears=linears,
            blocks=tuple(sum(p.numel() for p in block.parameters()) for block in blocks),
            positions=getattr(config, "max_position_embeddings", None),
        )

    @classmethod
    def of_config(cls, config: Any) -> Shape:
        """The shape of a transformers configuration, without weights."""
        return cls.of(_skeleton(config))

    @property
    def queries(self) -> int:
        """H x d, the width of the queries and of attention's output."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """K x d, the width of the keys and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def block_weights(self) -> int:
        """Weights in the linear layers of the blocks, which quantization compresses."""
        return sum(linear.weights for linear in self.linears)

    def largest_block(self, *, quantized: bool) -> int:
        """Parameters of the largest block; without its linear layers if they are quantized."""
        within = [0] * self.layers
        for linear in self.linears if quantized else ():
            within[linear.layer] += linear.weights
        return max(all_ - some for all_, some in zip(self.blocks, within, strict=True))

    def adapted(self, lora: LoraSettings) -> list[Linear]:
        """The linear layers with an adapter, by the rules of `peft.LoraConfig`."""
        wanted = lora.target_modules
        return [
            linear
            for linear in self.linears
            if linear.layer >= first_layer(lora) and _is_target(linear.name, wanted)
        ]

    def lora_parameters(self, lora: LoraSettings) -> int:
        """Parameters of the adapters: r x (inputs + outputs) per adapted layer."""
        return sum(lora.r * (linear.inputs + linear.outputs) for linear in self.adapted(lora))


def _sides(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2's matrix is transposed."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)


def _number(config: Any, name: str, default: int) -> int:
    """A dimension of a configuration; the largest where blocks differ (Gemma 3n)."""
    try:
        value = getattr(config, name, None) or default
    except Exception:  # transformers raises for Gemma 4, whose blocks differ
        value = [getattr(layer, name) for layer in config.per_layer_config]
    return int(max(value) if isinstance(value, (list, tuple)) else value)


def first_layer(lora: LoraSettings) -> int:
    """The lowest block with an adapter; for `steered`, not known yet, the lowest possible."""
    return 0 if lora.first_layer == "steered" else lora.first_layer


def _is_target(name: str, wanted: str | Sequence[str]) -> bool:
    if wanted == "all-linear":
        return True
    if isinstance(wanted, str):  # PEFT reads a string as a pattern of the whole path
        return any(re.fullmatch(wanted, path) for path in (name, f"x.{name}"))
    return name in {path.rpartition(".")[2] for path in wanted}


def gguf_file(settings: ModelSettings) -> Path | None:
    """The GGUF file of the settings, also the built-in model's; None for any other model."""
    path = builtin_path() if settings.id == BUILTIN else Path(settings.id).expanduser()
    return path if path.is_file() else None


def read_shape(settings: ModelSettings) -> Shape:
    """The shape of a model that is not loaded; of a hub model only config.json is fetched.

    Raises InputError without a configuration that transformers can read.
    """
    with _explained(settings):
        return Shape.of(read_skeleton(settings))


def read_skeleton(settings: ModelSettings) -> Any:
    """A model on torch's meta device, from its configuration alone; errors as for `read_shape`."""
    with _explained(settings):
        path = Path(settings.id).expanduser()
        if path.is_dir() and (base := adapter_base(path)) is not None:
            return read_skeleton(base)
        if (file := gguf_file(settings)) is not None:
            return _skeleton(load_gguf_config(file, keep=settings.advanced.gguf_cache))
        config = AutoConfig.from_pretrained(
            settings.id,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
        return _skeleton(config)


@contextmanager
def _explained(settings: ModelSettings) -> Iterator[None]:
    """Errors as one line: those of the hub, of damaged files and unknown architectures differ."""
    try:
        with quiet_libraries():
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot read the configuration of {settings.id}{reason(error)}."
            " Try: a hub id, or a folder that has a config.json"
        ) from None


def _skeleton(config: Any) -> Any:
    """A model of this configuration whose tensors have shapes but no data."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model
