"""Export of the LoRA adapter as a GGUF file, which keeps the user's own quantized base.

For ``llama-server --lora FILE`` and Ollama's ``ADAPTER``. llama.cpp multiplies an adapter by alpha
over rank, with one alpha for all layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from safesteer.errors import InputError
from safesteer.export import adapter
from safesteer.export.gguf_file import (
    architecture_name,
    reordered,
    require_supported,
    tensor_name,
    write_tensors,
)
from safesteer.export.gguf_on_base import Hook, read_on_base
from safesteer.export.source import Source
from safesteer.export.verify import Candidate, mismatch
from safesteer.models.files import short_name
from safesteer.models.layers import text_config

_PREFIX = "base_model.model."  # PEFT's, before the names of the base's modules


def write(source: Source, target: Path, dtype: torch.dtype) -> None:
    """Write the two factors of each layer in float32.

    Raises InputError for a run without an adapter, for one on another adapter, and for a base that
    llama.cpp names differently or not at all.
    """
    adapter.folder(source, "gguf")
    if source.adapters:
        raise InputError(
            f"the run's base is itself an adapter ({source.adapters[-1]}), which a GGUF file of its"
            " base lacks. Try: --format gguf"
        )
    config = text_config(source.variant.model.model)
    require_supported(config, "Try: --format adapter, then llama.cpp's convert_lora_to_gguf.py")
    alpha, tensors = _factors(source.variant.runner, config)
    writer = gguf.GGUFWriter(target, architecture_name(config))
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(f"{short_name(source.settings.id)}-safesteer")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        write_tensors(writer, tensors, torch.float32)
    finally:
        writer.close()


def read(source: Source, target: Path) -> Candidate:
    """Put the file's factors on the base, beside its layers."""
    model = source.variant.runner.unload()
    reader = gguf.GGUFReader(target)
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    config = text_config(model)
    hooks: dict[nn.Module, Hook] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        new = tensor_name(f"{name}.weight", config)
        if f"{new}.lora_a" in tensors:
            a, b = tensors.pop(f"{new}.lora_a"), tensors.pop(f"{new}.lora_b")
            hooks[module] = _add(a, reordered(new, b, config, back=True), alpha / len(a))
    if tensors:
        raise mismatch(f"the base has no layer for {sorted(tensors)[0]}")
    return read_on_base(source, model, hooks, source.tokenizer, target)


def _factors(student: Any, config: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The alpha of all layers, and A [r, in] and B [out, r] of each under llama.cpp's names."""
    alpha: float | None = None
    found: dict[str, torch.Tensor] = {}
    for name, layer in student.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        (key,) = layer.active_adapters
        if key not in layer.lora_A:
            raise InputError(
                f"the adapter of {name} is not one of a linear layer, and cannot be written as"
                " GGUF. Try: --format gguf"
            )
        a: Any = layer.lora_A[key].weight
        b: Any = layer.lora_B[key].weight
        scale = layer.scaling[key]
        alpha = alpha if alpha is not None else scale * len(a)
        new = tensor_name(f"{name.removeprefix(_PREFIX)}.weight", config)
        found[f"{new}.lora_a"] = a
        # 1 where all layers have the same rank and alpha.
        found[f"{new}.lora_b"] = reordered(new, b, config) * (scale * len(a) / alpha)
    assert alpha is not None
    return alpha, found


def _add(a: torch.Tensor, b: torch.Tensor, scale: float) -> Hook:
    return lambda module, inputs, output: output + scale * (inputs[0] @ a.T) @ b.T
