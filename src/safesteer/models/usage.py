"""How to load what a run trained, as code for its reader; needs no model in memory."""

from __future__ import annotations

from pathlib import Path

from safesteer.config import ModelSettings


def loading_code(run: Path, base: ModelSettings) -> list[str]:
    """Python that loads the aligned model with transformers, and with peft for an adapter."""
    from safesteer.models.load import auto_class, locate

    full, adapter = run / "model", run / "adapter"
    if full.is_dir():
        auto = auto_class(full, base.trust_remote_code).__name__
        return [
            f"from transformers import {auto}",
            f'model = {auto}.from_pretrained("{full}")',
        ]
    kind, path = locate(base)
    if kind == "gguf":
        arguments = f'"{path.parent}", gguf_file="{path.name}"'
    elif base.revision:
        arguments = f'"{base.id}", revision="{base.revision}"'
    else:
        arguments = f'"{base.id}"'
    auto = "AutoModelForCausalLM"
    if kind == "folder":
        auto = auto_class(path, base.trust_remote_code).__name__
    return adapter_code(auto, arguments, base, adapter)


def adapter_code(auto: str, arguments: str, base: ModelSettings, adapter: Path) -> list[str]:
    """Python that loads a base with the class `auto`, in the bits of the settings, and an adapter.

    `arguments` says where the base is.
    """
    bits = {
        "none": "",
        "8bit": "load_in_8bit=True",
        "4bit": 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True',
    }[base.quantization]
    lines = [f"from peft import PeftModel; from transformers import {auto}"]
    if bits:
        lines = [f"{lines[0]}, BitsAndBytesConfig", f"bits = BitsAndBytesConfig({bits})"]
        arguments += ", quantization_config=bits"
    return [
        *lines,
        f"base = {auto}.from_pretrained({arguments})",
        f'model = PeftModel.from_pretrained(base, "{adapter}")',
    ]
