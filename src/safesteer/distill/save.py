"""Save the trained weights as a folder, in one step that a kill cannot cut in half."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from safesteer import distributed
from safesteer.config.settings import ModelSettings
from safesteer.files import PARTIAL
from safesteer.models.files import base_name, whole_model
from safesteer.models.layers import is_sharded
from safesteer.models.load import copy_base_files, save_model


def save_student(student: Any, tokenizer: Any, target: Path, base: ModelSettings) -> None:
    """Save a PEFT model's adapter, or all weights of a model without one.

    The folder `target`, which must not exist, is written under another name and then renamed. Every
    process calls this; the main one writes. An adapter names its `base`.
    """
    weights = _gathered(student) if is_sharded(student) else None
    if not distributed.is_main():
        return
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    for config in getattr(student, "peft_config", {}).values():
        # PEFT holds a set here, whose order differs from process to process.
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
        config.base_model_name_or_path = base_name(base)
        config.revision = base.revision
    save_model(student, tokenizer, partial, weights)
    kind, folder, _ = whole_model(base)
    if not hasattr(student, "peft_config") and kind == "folder":
        copy_base_files(folder, partial)
    (partial / "README.md").unlink(missing_ok=True)
    os.replace(partial, target)


def _gathered(student: Any) -> dict[str, torch.Tensor]:
    """The adapter, or all weights, of a student split over processes; for the main one."""
    weights = {}
    for name, parameter in student.named_parameters():
        if hasattr(student, "peft_config") and not parameter.requires_grad:
            continue
        if hasattr(parameter, "full_tensor"):  # FSDP 2
            whole = parameter.detach().full_tensor()
        else:  # ZeRO-3
            from deepspeed.zero import GatheredParameters

            with GatheredParameters([parameter]):
                whole = parameter.detach().clone()
        if distributed.is_main():
            weights[name.replace("_checkpoint_wrapped_module.", "")] = whole.cpu()
    return weights
