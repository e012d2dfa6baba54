"""The safety teacher for lm-eval's model class `steered`: the direction as a file of its format.

lm-eval adds a vector to the output of a module that the file names. That is the steering of the
block after it wherever a block reads what the one before wrote, which reading it back proves.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from safesteer.errors import InputError
from safesteer.export.proof import Candidate
from safesteer.export.source import Source
from safesteer.export.teacher import tokenizer_with_context
from safesteer.models.layers import backbone, find_blocks, has_other_towers

FILE_NAME = "steered.pt"


def write(source: Source, target: Path, dtype: torch.dtype) -> None:
    """`steered.pt` beside the tokenizer, whose template begins with what the teacher reads first.

    The format is torch's, the only one that lm-eval reads vectors from, and lm-eval unpickles it
    whole. This one holds a tensor and plain values, for which nothing more than weights_only is
    needed; `read` lets lm-eval have it only after that was checked.

    Raises InputError for a teacher that is not steered, and without lm-eval.
    """
    if source.direction is None:
        raise InputError(
            "the teacher is not steered, it only reads a context; use --format teacher"
        )
    if has_other_towers(source.variant.model.model):
        raise InputError(
            "lm-eval's class reads models of text alone, and this one also sees; use --format"
            " teacher"
        )
    if source.bits != "none":
        raise InputError(
            f"the run's base is held in {source.bits}, which lm-eval's class cannot be told; use"
            " --format teacher, which writes ordinary weights"
        )
    if source.adapters:
        raise InputError(
            f"the base is an adapter ({source.adapters[-1]}), which lm-eval's `steered` does not"
            " merge; use --format teacher"
        )
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            "--format steered is checked with lm-eval, which is not installed; run: pip install"
            " 'safesteer[eval]'"
        )
    content = {
        hookpoint(source.variant.model.model, source.direction.layer): {
            "steering_vector": source.direction.vector.float().clone(),
            "steering_coefficient": float(source.direction.coefficient),
            "action": "add",
            "bias": None,
            "head_index": None,
        }
    }
    tokenizer_with_context(source).save_pretrained(target)
    torch.save(content, target / FILE_NAME)


def read(source: Source, target: Path) -> Candidate:
    """Load base and file with lm-eval's own class."""
    from lm_eval.models.hf_steered import SteeredModel

    # lm-eval's class unpickles whatever the file holds; this raises for all but plain tensors.
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


def hookpoint(model: Any, layer: int) -> str:
    """The module, named from the backbone, that writes the input of block `layer`."""
    before = find_blocks(model)[layer - 1] if layer else model.get_input_embeddings()
    names = {module: name for name, module in backbone(model).named_modules()}
    return names[before]
