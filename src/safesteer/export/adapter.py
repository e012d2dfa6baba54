"""The LoRA adapter as PEFT reads it, its base named in its configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from safesteer.errors import InputError
from safesteer.export.proof import Candidate
from safesteer.export.source import Source


def write(source: Source, target: Path, dtype: torch.dtype) -> None:
    """Copy the run's adapter with tokenizer and chat template; its type stays float32.

    Raises InputError for a run that trained all weights.
    """
    folder = source.run / "adapter"
    if not folder.is_dir():
        raise InputError(
            f"{source.run} trained all weights and has no adapter; use --format merged"
        )
    shutil.copytree(folder, target)


def read(source: Source, target: Path) -> Candidate:
    """Load base and adapter with transformers and peft, as a user would."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    model = PeftModel.from_pretrained(source.load_base(), target).eval()
    return Candidate(lambda ids: model(ids).logits, AutoTokenizer.from_pretrained(target))
