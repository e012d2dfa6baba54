"""Run a PEFT model as its base: adapters off, everything else untouched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def base_weights(model: nn.Module) -> Iterator[None]:
    """A context in which a LoRA model runs without its adapter; nothing for any other model.

    PEFT puts adapters into the base model in place, so `model` may be the PEFT model or the model
    that it was made from. What was off stays off, and no ``requires_grad`` changes.
    """
    layers = [module for module in _adapter_layers(model) if not module.disable_adapters]
    trained = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


def _adapter_layers(model: nn.Module) -> list[Any]:
    """The layers of PEFT in a model; none as long as PEFT, slow to import, is not in use."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]
