"""PEFT models with their adapters off."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def base_weights(model: nn.Module) -> Iterator[None]:
    """Run a model without its adapters while the context is open.

    PEFT puts adapters into the base model in place, so `model` may be the PEFT model or the base
    that it was made from; any other model runs unchanged. Adapters that were off stay off, and
    ``requires_grad`` is restored.
    """
    layers = [module for module in adapter_layers(model) if not module.disable_adapters]
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


def adapter_layers(model: nn.Module) -> list[Any]:
    """PEFT's layers in a model; none if PEFT, which is slow to import, was not imported."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]
