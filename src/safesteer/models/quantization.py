"""Bases in 8 or 4 bits: whether a model can be loaded so, how, and which one is.

The linear layers of the base are rounded by bitsandbytes; embeddings, norms, the output matrix and
the adapter are not. A folder that is stored in fewer bits already is loaded as it is where
bitsandbytes made it, made whole where transformers can do that anywhere, else refused. peft's
``prepare_model_for_kbit_training`` is not used: it converts the rest of the base to float32 in
place, and the direction and the teacher belong to the base as it was.
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

# Stored formats whose weights transformers turns into ordinary ones while it reads them.
_MADE_WHOLE = ("fp8", "mxfp4")
BITSANDBYTES = ("8bit", "4bit")
_ROUNDED = ("Int8Params", "Params4bit")  # classes of bitsandbytes, which may not be installed


def check_quantization(settings: ModelSettings, kind: str, path: Path, *, full: bool) -> str:
    """The bits that bitsandbytes is going to hold the base in: none, 8bit or 4bit.

    Raises InputError where it cannot be loaded as the setting says, or as its folder is stored.

    Args:
        settings: how the base is to be loaded.
        kind: "gguf" or "folder", what `path` is.
        path: where the base lies.
        full: whether all weights are going to be trained.
    """
    given = f"model.quantization = '{settings.quantization}'"
    stored = None if kind == "gguf" else stored_quantization(path)
    if settings.quantization != "none":
        if kind == "gguf":
            raise InputError(
                f"{given}: {settings.id} is a GGUF file, whose weights are made whole as they are"
                " read; give the model's folder or hub id"
            )
        if not (path / "config.json").is_file():
            raise InputError(
                f"{given}: {path} holds an adapter, which is merged into its base, and merging into"
                " rounded weights loses a part of it; merge it first and give that folder"
            )
        if stored is not None:
            raise InputError(
                f"{given}: {settings.id} is stored as {stored} already; leave model.quantization"
                " out"
            )
    if stored is not None and stored not in (*_MADE_WHOLE, *BITSANDBYTES):
        raise InputError(
            f"{settings.id} is stored as {stored}, which cannot be trained here; give the model"
            " that it was made from, with --quantization 4bit if memory is short"
        )
    bits = loaded_bits(settings, kind, path)
    if bits == "none":
        return bits
    if full:
        raise InputError(
            f"train.method = 'full' trains every weight, and those of {settings.id} are held in"
            f" {bits}; use --method lora, or a base that is not quantised"
        )
    _require_bitsandbytes(bits)
    return bits


def _require_bitsandbytes(bits: str) -> None:
    """Raise InputError where bitsandbytes is missing or too old."""
    if is_bitsandbytes_available():
        return
    found = "is not installed"
    if importlib.util.find_spec("bitsandbytes") is not None:
        found = f"{importlib.metadata.version('bitsandbytes')} is too old"
    raise InputError(
        f"weights in {bits} need bitsandbytes, which {found}; run: pip install"
        " 'safesteer[quantization]', or load the base without model.quantization"
    )


def check_device(device: torch.device, bits: str) -> None:
    """Raise InputError for a device that bitsandbytes cannot use."""
    import bitsandbytes

    if device.type not in getattr(bitsandbytes, "supported_torch_devices", {"cuda"}):
        raise InputError(
            f"bitsandbytes {bitsandbytes.__version__} has no {bits} for the device {device}; run:"
            " pip install -U bitsandbytes, or leave model.quantization out"
        )


def loading_arguments(bits: str, dtype: torch.dtype) -> dict[str, Any]:
    """What ``from_pretrained`` needs to round a base to `bits`; the products are made in `dtype`.

    nf4 with quantised scales in 4 bits, LLM.int8() in 8 bits.
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
    """How a folder's weights are stored, by its config.json: 8bit, 4bit (both of bitsandbytes), or
    transformers' name of the method (gptq, awq, fp8, ...); None for ordinary weights.
    """
    file = folder / "config.json"
    try:
        found = _of_config(json.loads(file.read_text("utf-8"))) if file.is_file() else None
    except ValueError:
        return None  # the loader says what is wrong with it
    if found is None:
        return None
    if found.get("load_in_8bit"):
        return "8bit"
    if found.get("load_in_4bit"):
        return "4bit"
    return str(found.get("quant_method", "an unnamed format"))


def loaded_bits(settings: ModelSettings, kind: str, path: Path) -> str:
    """none, or the bits that bitsandbytes holds a base in: 8bit or 4bit."""
    stored = None if kind == "gguf" else stored_quantization(path)
    return stored if stored in BITSANDBYTES else settings.quantization


def dequantize_on_load(config: Any) -> None:
    """Let transformers turn stored fp8 or mxfp4 weights into ordinary ones, on every device.

    By itself it does so only where there are no kernels for them; ours read weights directly.
    """
    for part in (config, config.get_text_config()):
        stored = getattr(part, "quantization_config", None)
        if isinstance(stored, dict) and stored.get("quant_method") in _MADE_WHOLE:
            part.quantization_config = {**stored, "dequantize": True}


def quantization_of(model: Any) -> str | None:
    """8bit or 4bit for a model whose layers bitsandbytes has rounded, else None."""
    for bits in BITSANDBYTES:
        if getattr(model, f"is_loaded_in_{bits}", False):
            return bits
    return None


def match_training(model: nn.Module) -> nn.Module:
    """Let layers in 8 or 4 bits compute on the CPU what they compute in training; returns it.

    Outside of training bitsandbytes rounds the inputs of 8-bit layers there as well, and where the
    processor has bfloat16 it rounds the scales of 4-bit weights once more, for good. The student,
    which is trained, and the teacher, which is not, share their layers and must not differ by that.
    On CUDA nothing changes.
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

    class SteadyLinear8bit(Linear8bitLt):
        """A layer in 8 bits that is always in training mode, where its inputs stay as they are."""

        def train(self, mode: bool = True) -> SteadyLinear8bit:
            super().train(True)
            return self

    return SteadyLinear8bit


def dequantized(model: Any) -> Any:
    """The model with ordinary linear layers, in the type that it computes in; in place.

    On the CPU they compute what the rounded ones did. On CUDA layers in 8 bits round their inputs
    as well, which ordinary ones do not.
    """
    bits = quantization_of(model)
    if bits is None:
        return model
    model = model.dequantize(dtype=model.dtype)
    vars(model).pop(f"is_loaded_in_{bits}")
    return model.requires_grad_(False).eval()


def is_quantized(weight: nn.Parameter) -> bool:
    """Whether a weight holds the codes of bitsandbytes, which only its own layers can read."""
    return type(weight).__name__ in _ROUNDED


def _of_config(config: dict[str, Any]) -> dict[str, Any] | None:
    found = config.get("quantization_config")
    for part in ("text_config", "llm_config"):
        found = found or (config.get(part) or {}).get("quantization_config")
    return found or None
