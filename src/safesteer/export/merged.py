"""Full weights in one folder that transformers, vLLM and llama.cpp's converter read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from safesteer.export.proof import Candidate
from safesteer.export.source import Source, copy_processor
from safesteer.models.load import auto_class

SHARD = "5GB"


def write(source: Source, target: Path, dtype: torch.dtype) -> None:
    """Merge the adapter in float32, then round to `dtype`; trained weights are taken as they are.

    Sharded safetensors, configuration, generation configuration, tokenizer and chat template.
    """
    write_model(aligned_model(source), source.tokenizer, target, dtype)
    copy_processor(source, target)


def read(source: Source, target: Path) -> Candidate:
    """Load the folder with transformers alone."""
    from transformers import AutoTokenizer

    trust = source.settings.trust_remote_code
    model = auto_class(target, trust).from_pretrained(
        target, dtype=torch.float32, trust_remote_code=trust
    )
    model.eval()
    return Candidate(lambda ids: model(ids).logits, AutoTokenizer.from_pretrained(target))


def aligned_model(source: Source) -> Any:
    """The aligned model without PEFT. The variant's own weights become it."""
    runner = source.variant.runner
    return runner.merge_and_unload() if hasattr(runner, "merge_and_unload") else runner


def write_model(model: Any, tokenizer: Any, target: Path, dtype: torch.dtype) -> None:
    """Save a model in `dtype` with its tokenizer."""
    model.to(dtype).save_pretrained(target, max_shard_size=SHARD)
    tokenizer.save_pretrained(target)
