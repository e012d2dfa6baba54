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
    from safesteer.models.load import locate

    kind, path = locate(base)
    if kind == "gguf":
        arguments = f'"{path.parent}", gguf_file="{path.name}"'
    elif base.revision:
        arguments = f'"{base.id}", revision="{base.revision}"'
    else:
        arguments = f'"{base.id}"'
    return [
        "from peft import PeftModel; from transformers import AutoModelForCausalLM",
        f"base = AutoModelForCausalLM.from_pretrained({arguments})",
        f'model = PeftModel.from_pretrained(base, "{adapter}")',
    ]
