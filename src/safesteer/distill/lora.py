"""The student's LoRA adapters: where they lie, and how far they are extrapolated."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from safesteer import distributed
from safesteer.config.rules import STEERED_LAYER
from safesteer.config.settings import LoraSettings, TrainSettings
from safesteer.errors import InputError, one_line
from safesteer.models.layers import find_blocks, has_other_towers, text_tower_name
from safesteer.models.lora_dtype import compute_in_model_dtype


def with_lora(model: Any, settings: TrainSettings, seed: int, steered: int | None = None) -> Any:
    """Put fresh adapters into a model in place, and return the PEFT model around it.

    `steered` is the layer at which the teacher is steered, if it is.

    Raises:
        InputError: layers and modules do not go together, or an adapter would lie on the output
            head.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    torch.manual_seed(seed)
    lora = settings.lora
    layers = len(find_blocks(model))
    first = _first_layer(lora, layers, steered)
    targets = lora.target_modules
    if first and targets == "all-linear":  # PEFT does not accept it together with layers
        targets = _linear_names(model)
    if first and isinstance(targets, str):
        raise InputError(
            f"train.lora.first_layer = {lora.first_layer} needs all-linear or a list as"
            f" train.lora.target_modules, not '{lora.target_modules}'. Try: [q_proj, v_proj]"
        )
    # State-space blocks hand this weight to a fused kernel, past any adapter around it.
    excluded = [
        re.escape(f"{name}.out_proj")
        for name, module in model.named_modules()
        if hasattr(module, "conv1d") and hasattr(module, "out_proj")
    ]
    if has_other_towers(model):  # only the text tower is trained
        excluded.append(rf"(?!{re.escape(text_tower_name(model))}\.).*")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=targets,
        exclude_modules="|".join(excluded) or None,
        layers_to_transform=list(range(first, layers)) if first else None,
        task_type="CAUSAL_LM",
    )
    try:
        student: Any = get_peft_model(model, config)
        found = list(student.base_model.targeted_module_names)
    except (ValueError, IndexError, re.error) as error:
        raise _wrong_targets(lora, model, one_line(error)[:160]) from None
    names = lora.target_modules if isinstance(lora.target_modules, list) else []
    if nowhere := [n for n in names if not any(f".{f}".endswith(f".{n}") for f in found)]:
        raise _wrong_targets(lora, model, f"no layer is named {nowhere[0]}")
    if isinstance(student.get_output_embeddings(), BaseTunerLayer):
        student.unload()
        # The loss multiplies hidden states by the base's output matrix.
        raise InputError(
            f"train.lora.target_modules = {lora.target_modules} puts an adapter on the output head,"
            " which the loss would never train. Try: the linear layers of the blocks (all-linear)"
        )
    # At every checkpoint PEFT would ask the hub whether the base's embeddings have changed.
    student.save_pretrained = partial(student.save_pretrained, save_embedding_layers=False)
    return compute_in_model_dtype(student)


@torch.no_grad()
def extrapolate(student: Any, by: float) -> None:
    """Scale the trained change of a PEFT model in place: weights become base + (1 + `by`) x change.

    The factors B are scaled and not ``lora_alpha``, which some readers of an adapter take for a
    whole number. Every process calls this.

    Source: model extrapolation (ExPO; Zheng et al. 2024, arXiv 2404.16792).
    """
    for name, parameter in student.named_parameters():
        if not re.search(r"\.lora_(embedding_)?B\b", name):
            continue
        if hasattr(parameter, "ds_id"):  # ZeRO-3, which may hold it whole, in part or both
            from deepspeed.zero import GatheredParameters

            with GatheredParameters([parameter], modifier_rank=0):
                if distributed.is_main():
                    parameter.mul_(1 + by)
        else:
            parameter.mul_(1 + by)


def _first_layer(lora: LoraSettings, layers: int, steered: int | None) -> int:
    """The first of `layers` blocks that gets an adapter."""
    if lora.first_layer == "steered":
        if steered is None:
            raise InputError(STEERED_LAYER.message)
        return steered
    if lora.first_layer >= layers:
        raise InputError(
            f"train.lora.first_layer = {lora.first_layer}, and the model has layers 0 to"
            f" {layers - 1}. Try: one of these"
        )
    return lora.first_layer


def _wrong_targets(lora: LoraSettings, model: Any, why: str) -> InputError:
    known = ", ".join(_linear_names(model)[:8])
    return InputError(
        f"train.lora.target_modules = {lora.target_modules} does not fit this model: {why}. Try:"
        f" all-linear, or some of {known}"
    )


def _linear_names(model: Any) -> list[str]:
    """The names of linear layers inside the blocks, such as q_proj."""
    names = {
        name.rpartition(".")[2]
        for block in find_blocks(model)
        for name, module in block.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    return sorted(names)
