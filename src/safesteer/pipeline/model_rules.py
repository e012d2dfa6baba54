"""Settings against the model's shape: what its config.json decides, before weights are loaded."""

from __future__ import annotations

from typing import Any

import torch

from safesteer.config.rules import check_rules
from safesteer.config.settings import Settings
from safesteer.direction.extract import layers_to_consider
from safesteer.distill.lora import with_lora
from safesteer.errors import InputError
from safesteer.memory.shape import Shape, read_skeleton


def read_model(settings: Settings) -> tuple[Any, Shape] | None:
    """The model on the meta device and its shape; None if loading must say what is wrong."""
    try:
        model = read_skeleton(settings.model)
        return model, Shape.of(model)
    except InputError:
        return None


def check_model_rules(settings: Settings, model: Any, shape: Shape, *, trains: bool) -> None:
    """Raise InputError for settings that a model of this shape cannot work with.

    Args:
        model: on the meta device; adapters are put into it.
        shape: the shape of `model`.
        trains: whether the student is still to be trained.
    """
    try:
        check_rules(**dict(settings), shape=shape)
    except ValueError as error:
        raise InputError(str(error)) from None
    if settings.teacher.steers:
        layers_to_consider(settings.direction, shape.layers)
    if trains and settings.train.method == "lora":
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            # Which layer is steered is not known yet; any one shows whether targets fit.
            with_lora(model, settings.train, settings.seed, steered=shape.layers - 1)
