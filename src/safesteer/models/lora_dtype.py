"""LoRA adapters with float32 weights that compute in the model's own type.

PEFT keeps the factors of a bfloat16 model in float32, as the optimizer needs, and converts every
input of an adapted layer to float32 and back. Converting the factors instead is far less work
(research/log/2026-11-22-cpu-speed.md).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer


class _InTypeOfInput(torch.nn.Linear):
    """A factor that computes in the type of its input; its gradient keeps its own type."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(input, self.weight.to(input.dtype))


def compute_in_model_dtype(student: Any) -> Any:
    """Let the LoRA layers of a PEFT model compute in the type of their inputs; returns the model.

    Names, shapes and types of the weights stay, so saving and loading do not change.
    """
    for module in student.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
            for factors in (module.lora_A, module.lora_B):
                for factor in factors.values():
                    if type(factor) is torch.nn.Linear and factor.bias is None:
                        factor.__class__ = _InTypeOfInput
    return student
