"""Quantized bases, in 8 or 4 bits: checks, loading and detection.

bitsandbytes quantizes the linear layers of the base, not embeddings, norms, the output matrix or
the adapter. A folder that is quantized already is loaded as it is if bitsandbytes made it, and
dequantized if transformers can do that on every device. PEFT's ``prepare_model_for_kbit_training``
is not used: it converts the rest of the base to float32 in place, and direction and teacher belong
to the original base.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import is_bitsandbytes_available

from safesteer.config.settings import ModelSettings
from safesteer.errors import InputError

# Formats that transformers can dequantize while loading.
_DEQUANTIZED = ("fp8", "mxfp4")
BITSANDBYTES = ("8bit", "4bit")
_CLASSES = ("Int8Params", "Params4bit")  # of bitsandbytes, which may not be installed


def check_quantization(settings: ModelSettings, kind: str, path: Path, *, full: bool) -> str:
    """The quantization that a base will have in memory, checked: none, 8bit or 4bit.

    Args:
        settings: how to load the base.
        kind: of its files, see `locate`.
        path: its file or folder.
        full: whether all weights will be trained.

    Raises:
        InputError: a quantization that is not available on this machine, or not for this base.
    """
    given = f"model.quantization = '{settings.quantization}'"
    stored = None if kind == "gguf" else stored_quantization(path)
    if settings.quantization != "none":
        if kind == "gguf":
            raise InputError(
                f"{given}: {settings.id} is a GGUF file, whose weights are dequantized while"
                " loading. Try: the model's folder or hub id"
            )
        if not (path / "config.json").is_file():
            raise InputError(
                f"{given}: {path} holds an adapter, and quantized weights would lose a part of it"
                " in merging. Try: merge it into the original weights, and use that folder"
            )
        if stored is not None:
            raise InputError(
                f"{given}: {settings.id} is stored as {stored} already. Try:"
                " model.quantization=none"
            )
    if stored is not None and stored not in (*_DEQUANTIZED, *BITSANDBYTES):
        raise InputError(
            f"{settings.id} is stored as {stored}, which cannot be trained here. Try: the model"
            " that it was made from, with --quantization 4bit if memory is short"
        )
    bits = loaded_bits(settings, kind, path)
    if bits != "none":
        if full:
            raise InputError(
                f"train.method = 'full' trains every weight, and {settings.id} is quantized to"
                f" {bits}. Try: --method lora, or a base that is not quantized"
            )
        _require_bitsandbytes(bits)
    return bits


def _require_bitsandbytes(bits: str) -> None:
    """Raise InputError if bitsandbytes is missing or too old."""
    if is_bitsandbytes_available():
        return
    found = "is not installed"
    if importlib.util.find_spec("bitsandbytes") is not None:
        found = f"{importlib.metadata.version('bitsandbytes')} is too old"
    raise InputError(
        f"{bits} weights need bitsandbytes, which {found}. Try: pip install"
        " 'safesteer[quantization]', or model.quantization=none"
    )


def check_device(device: torch.device, bits: str) -> None:
    """Raise InputError for a device that bitsandbytes cannot use."""
    import bitsandbytes

    if device.type not in getattr(bitsandbytes, "supported_torch_devices", {"cuda"}):
        raise InputError(
            f"bitsandbytes {bitsandbytes.__version__} has no {bits} for the device {device}. Try:"
            " pip install -U bitsandbytes, or model.quantization=none"
        )


def loading_arguments(bits: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that quantize a base to `bits` and compute in `dtype`.

    4bit is nf4 with quantized scales, 8bit is LLM.int8().
    """
    if bits == "none":
        return {}
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    }


def stored_quantization(folder: Path) -> str | None:
    """How a folder's weights are quantized, by its config.json.

    8bit or 4bit (bitsandbytes), transformers' name of another method (gptq, awq, fp8), or None.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError:
        return None  # the loader reports the error
    parts = (config, *(config.get(name) or {} for name in ("text_config", "llm_config")))
    found = next(filter(None, (part.get("quantization_config") for part in parts)), None)
    if found is None:
        return None
    for bits in BITSANDBYTES:
        if found.get(f"load_in_{bits}"):
            return bits
    return str(found.get("quant_method", "an unnamed format"))


def loaded_bits(settings: ModelSettings, kind: str, path: Path) -> str:
    """The quantization that a base will have in memory, unchecked: none, 8bit or 4bit."""
    stored = None if kind == "gguf" else stored_quantization(path)
    return stored if stored in BITSANDBYTES else settings.quantization


def dequantize_on_load(config: Any) -> None:
    """Let transformers dequantize fp8 or mxfp4 weights on every device.

    By default it does so only on devices without kernels for them, but we read weights directly.
    """
    for part in (config, config.get_text_config()):
        stored = getattr(part, "quantization_config", None)
        if isinstance(stored, dict) and stored.get("quant_method") in _DEQUANTIZED:
            part.quantization_config = {**stored, "dequantize": True}


def quantization_of(model: Any) -> str | None:
    """8bit or 4bit for a model that bitsandbytes has quantized, else None."""
    for bits in BITSANDBYTES:
        if getattr(model, f"is_loaded_in_{bits}", False):
            return bits
    return None


def match_training(model: nn.Module) -> nn.Module:
    """Let quantized layers compute on the CPU in evaluation what they compute in training.

    In evaluation bitsandbytes also quantizes the inputs of 8-bit layers there, and on processors
    with bfloat16 it rounds the scales of 4-bit weights for good. Student and teacher share layers
    and must not differ by that. On CUDA nothing changes. Returns the model.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            module.__class__ = _training_8bit()
            module.train()
    return model


@cache
def _training_8bit() -> Any:
    from bitsandbytes.nn import Linear8bitLt

    class TrainingLinear8bit(Linear8bitLt):
        """An 8-bit layer that stays in training mode, where its inputs are not quantized."""

        def train(self, mode: bool = True) -> TrainingLinear8bit:
            super().train(True)
            return self

    return TrainingLinear8bit


def dequantized(model: Any) -> Any:
    """Dequantize the model in place, to the type that it computes in; returns it.

    The results stay the same on the CPU. On CUDA 8-bit layers also quantize their inputs, which
    dequantized ones do not.
    """
    bits = quantization_of(model)
    if bits is None:
        return model
    model = model.dequantize(dtype=model.dtype)
    vars(model).pop(f"is_loaded_in_{bits}")
    return model.requires_grad_(False).eval()


def is_quantized(weight: nn.Parameter) -> bool:
    """Whether a weight is quantized by bitsandbytes, so that only its own layers can read it."""
    return type(weight).__name__ in _CLASSES
