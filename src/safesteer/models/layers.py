"""Where a model's transformer blocks are, found by structure and not by name.

Knows nothing of architectures: the blocks are the longest list of modules of one kind inside the
text decoder whose forward takes hidden states of the model's width.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from safesteer import distributed
from safesteer.errors import InputError


def text_config(model: Any) -> Any:
    """The configuration of the language model, also inside a vision-language model."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the model's transformer blocks, in the order in which they run.

    Of all module lists in the model, or in the text tower of one that also sees or hears, the ones
    as long as the configuration's number of layers come first, then the longest; lists that belong
    to a vision or audio tower are passed over.

    Raises InputError, naming what was found, when there is no such list.
    """
    wanted = getattr(text_config(model), "num_hidden_layers", None)
    tower = backbone(model) if has_other_towers(model) else model
    found: list[tuple[str, nn.ModuleList]] = [
        (name, module)
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) >= 1
    ]
    # Lists inside a block (experts, heads) can be longer than the list of blocks: only outermost.
    outermost = [
        (name, module)
        for name, module in found
        if not any(name.startswith(other + ".") for other, _ in found)
    ]
    text = [
        (name, module)
        for name, module in outermost
        if not any(part in name.lower() for part in ("vision", "visual", "audio", "image"))
    ]
    exact = [module for _, module in text if len(module) == wanted]
    if exact:
        return exact[0]
    if text and wanted is None:
        return max((module for _, module in text), key=len)
    seen = ", ".join(f"{name} ({len(module)})" for name, module in found) or "none"
    raise InputError(
        f"cannot find the transformer blocks of {type(model).__name__}: looked for a module list of"
        f" length {wanted}, found {seen}; only decoder models of transformers are supported"
    )


def backbone(model: Any) -> Any:
    """The model without its output matrix: returns hidden states, also behind a PEFT adapter.

    Of a model that also sees or hears it is the text tower: a text needs no more, and the whole
    asks for what belongs to pictures in training.
    """
    inner = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    if has_other_towers(inner):
        return inner.get_decoder()
    return inner.base_model if inner.base_model is not inner else inner.model


def has_other_towers(model: Any) -> bool:
    """Whether the language model is a part of the model, beside a vision or audio tower."""
    return text_config(model) is not model.config


def text_tower_name(model: Any) -> str:
    """The dotted name of the text tower in a model that has others."""
    tower = backbone(model)
    return next(name for name, module in model.named_modules() if module is tower)


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are spread over processes, by FSDP 2 or ZeRO-3.

    Each pass through such a model has to be met by one of every other process.
    """
    if distributed.world_size() == 1:
        return False
    block = find_blocks(model)[0]
    return any(hasattr(module, "unshard") for module in (model, block)) or any(
        hasattr(parameter, "ds_id") for parameter in block.parameters()
    )
