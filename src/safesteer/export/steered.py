"""Export of the safety teacher for lm-eval's model class `steered`: the direction as a file.

lm-eval adds a vector to the output of a named module. That equals steering the next block's input
if the block reads this output unchanged, which is verified by reading the file back.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from safesteer.errors import InputError
from safesteer.export.source import Source
from safesteer.export.teacher import tokenizer_with_context
from safesteer.export.verify import Candidate
from safesteer.models.layers import backbone, find_blocks, has_other_towers

FILE_NAME = "steered.pt"


def write(source: Source, target: Path, dtype: torch.dtype) -> None:
    """Write `steered.pt`, and the tokenizer with the teacher's context in its template.

    lm-eval reads vectors from torch's pickle format only. This file holds a tensor and plain
    values, which `weights_only` can load; `read` checks that before lm-eval unpickles it.

    Raises InputError for a teacher or a base that lm-eval cannot load, and without lm-eval.
    """
    if problem := _problem(source):
        raise InputError(f"--format steered: {problem}. Try: --format teacher")
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            "--format steered needs lm-eval, which is not installed."
            " Try: pip install 'safesteer[eval]'"
        )
    direction = source.direction
    assert direction is not None
    content = {
        hookpoint(source.variant.model.model, direction.layer): {
            "steering_vector": direction.vector.float().clone(),
            "steering_coefficient": float(direction.coefficient),
            "action": "add",
            "bias": None,
            "head_index": None,
        }
    }
    tokenizer_with_context(source).save_pretrained(target)
    torch.save(content, target / FILE_NAME)


def read(source: Source, target: Path) -> Candidate:
    """Load base and file with lm-eval's class."""
    from lm_eval.models.hf_steered import SteeredModel

    # lm-eval unpickles the whole file; this raises for anything but plain tensors.
    torch.load(target / FILE_NAME, weights_only=True)
    arguments = source.base_arguments
    model = SteeredModel(
        arguments.pop("pretrained_model_name_or_path"),
        str(target / FILE_NAME),
        device="cpu",
        dtype="float32",
        tokenizer=str(target),
        trust_remote_code=source.settings.trust_remote_code,
        **arguments,
    )
    return Candidate(lambda ids: model._model_call(ids), model.tokenizer)


def _problem(source: Source) -> str:
    """Why lm-eval cannot load the teacher; empty if it can."""
    if source.direction is None:
        return "the teacher is not steered"
    if has_other_towers(source.variant.model.model):
        return "lm-eval's class loads text models only, and this one has a vision tower"
    if source.bits != "none":
        return f"lm-eval's class cannot load the {source.bits} base"
    if source.adapters:
        return f"lm-eval's class cannot merge the base, which is an adapter ({source.adapters[-1]})"
    return ""


def hookpoint(model: Any, layer: int) -> str:
    """The module, named from the backbone, whose output is the input of block `layer`."""
    before = find_blocks(model)[layer - 1] if layer else model.get_input_embeddings()
    names = {module: name for name, module in backbone(model).named_modules()}
    return names[before]
