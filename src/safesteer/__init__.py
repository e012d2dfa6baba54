"""SafeSteer: make a chat model refuse harmful requests, using its own refusal direction.

``align`` does what ``safesteer run`` does; the other names are its steps. Everything is imported
when first used, so that ``import safesteer`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from safesteer.errors import InputError, SafeSteerError

if TYPE_CHECKING:
    from safesteer.config.load import load_settings
    from safesteer.config.settings import Settings
    from safesteer.direction.extract import extract_direction
    from safesteer.direction.vector import Direction
    from safesteer.distill.config import SafeSteerConfig
    from safesteer.distill.plan import TrainingPrompts
    from safesteer.distill.train import TrainingOutput, train
    from safesteer.distill.trainer import SafeSteerTrainer
    from safesteer.evaluate.drift import measure_drift
    from safesteer.evaluate.refusals import refusal_rate
    from safesteer.models.load import ChatModel, load_model
    from safesteer.pipeline.align import align
    from safesteer.prompts import load_prompt_set, load_prompts
    from safesteer.safety_tokens import select_safety_tokens
    from safesteer.teacher import Teacher

__version__ = "0.1.0"

__all__ = [
    "ChatModel",
    "Direction",
    "InputError",
    "SafeSteerConfig",
    "SafeSteerError",
    "SafeSteerTrainer",
    "Settings",
    "Teacher",
    "TrainingOutput",
    "TrainingPrompts",
    "__version__",
    "align",
    "extract_direction",
    "load_model",
    "load_prompt_set",
    "load_prompts",
    "load_settings",
    "measure_drift",
    "refusal_rate",
    "select_safety_tokens",
    "train",
]

_PLACES = {
    "ChatModel": "safesteer.models.load",
    "Direction": "safesteer.direction.vector",
    "SafeSteerConfig": "safesteer.distill.config",
    "SafeSteerTrainer": "safesteer.distill.trainer",
    "Settings": "safesteer.config.settings",
    "Teacher": "safesteer.teacher",
    "TrainingOutput": "safesteer.distill.train",
    "TrainingPrompts": "safesteer.distill.plan",
    "align": "safesteer.pipeline.align",
    "extract_direction": "safesteer.direction.extract",
    "load_model": "safesteer.models.load",
    "load_prompt_set": "safesteer.prompts",
    "load_prompts": "safesteer.prompts",
    "load_settings": "safesteer.config.load",
    "measure_drift": "safesteer.evaluate.drift",
    "refusal_rate": "safesteer.evaluate.refusals",
    "select_safety_tokens": "safesteer.safety_tokens",
    "train": "safesteer.distill.train",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'safesteer' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
