"""Export of the teacher's direction as a control vector of llama.cpp.

llama.cpp adds ``direction.N`` to the output of block N, counted from 0, at all positions. The input
of block `layer`, where a run steers, is the output of the block before. llama.cpp takes no
direction for block 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch

from safesteer.errors import InputError
from safesteer.export.gguf_file import architecture_name, require_supported, write_tensors
from safesteer.export.gguf_on_base import Hook, read_on_base
from safesteer.export.source import Source
from safesteer.export.teacher import tokenizer_with_context
from safesteer.export.verify import Candidate
from safesteer.models.files import short_name
from safesteer.models.layers import find_blocks, text_config

ARCHITECTURE = "controlvector"
_TENSOR = "direction."
_FIRST = 1  # block


def write(source: Source, target: Path, dtype: torch.dtype) -> None:
    """Write the direction times its coefficient, for ``--control-vector`` without a factor.

    Raises InputError for a teacher that is not steered, or at a layer where llama.cpp cannot.
    """
    direction = source.direction
    if direction is None:
        raise InputError("the teacher is not steered, and has no control vector. Try: another run")
    if direction.layer - 1 < _FIRST:
        raise InputError(
            f"the teacher is steered at the input of block {direction.layer}, and llama.cpp steers"
            f" from the input of block {_FIRST + 1} on. Try: --format teacher, or --format steered"
        )
    config = text_config(source.variant.model.model)
    require_supported(config, "Try: --format steered")
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    try:
        writer.add_name(f"{short_name(source.settings.id)}-safety-direction")
        writer.add_description(
            f"refusal direction at the input of block {direction.layer}, times the coefficient"
            f" {direction.coefficient:g}"
        )
        writer.add_string(f"{ARCHITECTURE}.model_hint", architecture_name(config))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", 1)
        vector = direction.coefficient * direction.vector.float()
        write_tensors(writer, {f"{_TENSOR}{direction.layer - 1}": vector}, torch.float32)
    finally:
        writer.close()


def read(source: Source, target: Path) -> Candidate:
    """Add each direction of the file to the output of its block."""
    model = source.variant.model.model
    blocks = find_blocks(model)
    hooks = {
        blocks[int(tensor.name.removeprefix(_TENSOR))]: _add(torch.tensor(tensor.data))
        for tensor in gguf.GGUFReader(target).tensors
    }
    return read_on_base(source, model, hooks, tokenizer_with_context(source))


def _add(vector: torch.Tensor) -> Hook:
    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output + vector
        return (output[0] + vector, *output[1:])

    return hook
