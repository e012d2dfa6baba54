"""Python code that loads a trained model, for model cards; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from safesteer.config.settings import ModelSettings
from safesteer.models.files import adapter_base, locate


def loading_code(run: Path, base: ModelSettings) -> list[str]:
    """Lines of Python that load the aligned model of a run with transformers and PEFT."""
    from safesteer.models.load import auto_class

    full, adapter = run / "model", run / "adapter"
    if full.is_dir():
        auto = auto_class(full, base.trust_remote_code).__name__
        loaded = f"model = {auto}.from_pretrained({quoted(full)})"
        return [f"from transformers import {auto}", loaded]
    auto, lines = _base_code(base)
    return _with_adapter(auto, lines, base, adapter)


def adapter_code(base: ModelSettings, adapter: Path) -> list[str]:
    """Lines of Python that load a text model, quantized as in its settings, and an adapter."""
    auto = "AutoModelForCausalLM"
    return _with_adapter(auto, _loaded(auto, quoted(base.id), base), base, adapter)


def quoted(text: str | Path) -> str:
    """A string literal of Python, in double quotes."""
    return json.dumps(str(text), ensure_ascii=False)


def _with_adapter(auto: str, lines: list[str], base: ModelSettings, adapter: Path) -> list[str]:
    bits = "" if base.quantization == "none" else ", BitsAndBytesConfig"
    imports = f"from peft import PeftModel; from transformers import {auto}{bits}"
    return [imports, *lines, f"model = PeftModel.from_pretrained(base, {quoted(adapter)})"]


def _base_code(base: ModelSettings) -> tuple[str, list[str]]:
    """The class of the base and the lines that load it; an adapter is merged as for training."""
    from safesteer.models.load import auto_class

    kind, path = locate(base)
    below = None if kind == "gguf" else adapter_base(path)
    if kind == "gguf":
        arguments = f"{quoted(path.parent)}, gguf_file={quoted(path.name)}"
    elif base.revision:
        arguments = f"{quoted(base.id)}, revision={quoted(base.revision)}"
    else:
        arguments = quoted(base.id)
    if below is not None:
        auto, lines = _base_code(below)
        merged = f"base = PeftModel.from_pretrained(base, {arguments}).merge_and_unload()"
        return auto, [*lines, merged]
    auto = "AutoModelForCausalLM"
    if kind == "folder":
        auto = auto_class(path, base.trust_remote_code).__name__
    return auto, _loaded(auto, arguments, base)


def _loaded(auto: str, arguments: str, base: ModelSettings) -> list[str]:
    if base.quantization == "none":
        return [f"base = {auto}.from_pretrained({arguments})"]
    bits = f"load_in_{base.quantization}=True"
    if base.quantization == "4bit":
        bits += ', bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True'
    return [
        f"bits = BitsAndBytesConfig({bits})",
        f"base = {auto}.from_pretrained({arguments}, quantization_config=bits)",
    ]
