"""The parts of a model: blocks, backbone, text tower, found by structure and not by name.

The blocks are the outermost list of modules in the text decoder that is as long as the
configuration's number of layers.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from safesteer import distributed
from safesteer.errors import InputError


def text_config(model: Any) -> Any:
    """The configuration of the language model, which may be part of a vision-language model."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The model's transformer blocks, in the order in which they run.

    Of the outermost module lists, outside of vision and audio towers, the first that is as long as
    the configuration's number of layers; without that number the longest.

    Raises:
        InputError: there is no such list.
    """
    wanted = getattr(text_config(model), "num_hidden_layers", None)
    tower = backbone(model) if has_other_towers(model) else model
    found: list[tuple[str, nn.ModuleList]] = [
        (name, module)
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) >= 1
    ]
    # Lists inside a block (experts, heads) can be longer than the list of blocks.
    text = [
        module
        for name, module in found
        if not any(name.startswith(other + ".") for other, _ in found)
        and not any(part in name.lower() for part in ("vision", "visual", "audio", "image"))
    ]
    exact = [module for module in text if len(module) == wanted]
    if exact:
        return exact[0]
    if text and wanted is None:
        return max(text, key=len)
    seen = ", ".join(f"{name} ({len(module)})" for name, module in found) or "none"
    raise InputError(
        f"cannot find the transformer blocks of {type(model).__name__}: no module list of length"
        f" {wanted}, only {seen}. Try: a decoder model of transformers"
    )


def without_adapter(model: Any) -> Any:
    """The model inside a PEFT model; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: Any) -> Any:
    """The model without its output matrix, which returns hidden states; also of a PEFT model.

    Of a vision-language model it is the text tower: text needs no more, and in training the whole
    would require image inputs.
    """
    inner = without_adapter(model)
    if has_other_towers(inner):
        return inner.get_decoder()
    return inner.base_model if inner.base_model is not inner else inner.model


def has_other_towers(model: Any) -> bool:
    """Whether the model has a vision or audio tower beside its language model."""
    return text_config(model) is not model.config


def text_tower_name(model: Any) -> str:
    """The dotted name of the text tower in a model with other towers."""
    tower = backbone(model)
    return next(name for name, module in model.named_modules() if module is tower)


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are sharded over processes, by FSDP 2 or ZeRO-3.

    All processes have to make each pass through such a model together.
    """
    if distributed.world_size() == 1:
        return False
    block = find_blocks(model)[0]
    return any(hasattr(module, "unshard") for module in (model, block)) or any(
        hasattr(parameter, "ds_id") for parameter in block.parameters()
    )
