"""How to load what a run trained, as code for its reader; needs no model in memory."""

from __future__ import annotations

from pathlib import Path

from safesteer.config import ModelSettings


def loading_code(run: Path, base: ModelSettings) -> list[str]:
    """Python that loads the aligned model with transformers, and with peft for an adapter."""
    full, adapter = run / "model", run / "adapter"
    if full.is_dir():
        return [
            "from transformers import AutoModelForCausalLM",
            f'model = AutoModelForCausalLM.from_pretrained("{full}")',
        ]
    return [
        "from peft import PeftModel; from transformers import AutoModelForCausalLM",
        *_base_code(base),
        f'model = PeftModel.from_pretrained(base, "{adapter}")',
    ]


def _base_code(base: ModelSettings) -> list[str]:
    """Lines that load the base; one that is an adapter is merged, as it was for the training."""
    from safesteer.models.load import adapter_base, locate

    kind, path = locate(base)
    below = None if kind == "gguf" else adapter_base(path)
    if kind == "gguf":
        arguments = f'"{path.parent}", gguf_file="{path.name}"'
    elif base.revision:
        arguments = f'"{base.id}", revision="{base.revision}"'
    else:
        arguments = f'"{base.id}"'
    if below is None:
        return [f"base = AutoModelForCausalLM.from_pretrained({arguments})"]
    merged = f"base = PeftModel.from_pretrained(base, {arguments}).merge_and_unload()"
    return [*_base_code(below), merged]
