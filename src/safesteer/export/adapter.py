"""Export of the LoRA adapter for PEFT, with its base named in its configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from safesteer.errors import InputError
from safesteer.export.source import Source
from safesteer.export.verify import Candidate
from safesteer.models.weights import load_adapter


def write(source: Source, target: Path, dtype: torch.dtype) -> None:
    """Copy the run's adapter with tokenizer and chat template; it stays in float32.

    Raises InputError for a run that trained all weights.
    """
    shutil.copytree(folder(source, "merged"), target)


def folder(source: Source, instead: str) -> Path:
    """The run's adapter; InputError if it has none, with the format to try `instead`."""
    found = source.run / "adapter"
    if not found.is_dir():
        raise InputError(
            f"{source.run} trained all weights and has no adapter. Try: --format {instead}"
        )
    return found


def read(source: Source, target: Path) -> Candidate:
    """Load base and adapter with transformers and peft, as a user would."""
    return Candidate.of(load_adapter(source.load_base(), target), target)
