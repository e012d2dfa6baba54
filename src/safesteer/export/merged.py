"""Export of full weights in a folder for transformers, vLLM and llama.cpp's converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from safesteer.export.source import Source, copy_files
from safesteer.export.verify import Candidate
from safesteer.models.load import auto_class
from safesteer.models.weights import load_weights

SHARD = "5GB"


def write(source: Source, target: Path, dtype: torch.dtype) -> None:
    """Merge the adapter in float32, if there is one, then cast to `dtype` and save.

    Writes sharded safetensors, configurations, tokenizer and chat template.
    """
    write_model(aligned_model(source), source.tokenizer, target, dtype)
    copy_files(source, target)


def read(source: Source, target: Path) -> Candidate:
    """Load the folder with transformers alone."""
    trust = source.settings.trust_remote_code
    model = load_weights(
        auto_class(target, trust), target, dtype=torch.float32, trust_remote_code=trust
    )
    return Candidate.of(model, target)


def aligned_model(source: Source) -> Any:
    """The aligned model without PEFT, merged in place into the variant's weights."""
    runner = source.variant.runner
    return runner.merge_and_unload() if hasattr(runner, "merge_and_unload") else runner


def write_model(model: Any, tokenizer: Any, target: Path, dtype: torch.dtype) -> None:
    """Save a model in `dtype` with its tokenizer, in shards of `SHARD`."""
    model.to(dtype).save_pretrained(target, max_shard_size=SHARD)
    tokenizer.save_pretrained(target)
