"""A refusal direction, and how a model is steered along it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from safesteer.models.steering import steer


@dataclass(frozen=True)
class Direction:
    """A refusal direction and how it is applied.

    Attributes:
        vector: [D], float32, not normalised (paper, section 3.1).
        layer: block whose input it is added to.
        coefficient: its factor.
        method: where it came from, harmful-harmless or refuse-comply.
        position: index from the end of the prompt that it was taken at; None: a mean over tokens.
    """

    vector: torch.Tensor
    layer: int
    coefficient: float = 1.0
    method: str = ""
    position: int | None = None

    @contextmanager
    def steer(self, model: nn.Module, rows: torch.Tensor | None = None) -> Iterator[None]:
        """Add the direction to `model`, any transformers model, while the context is open.

        h <- h + coefficient * vector at the input of block `layer`, at all positions.

        Args:
            model: the model; its weights do not change.
            rows: bool [B]; only these sequences of a batch are steered. None steers all.

        Raises:
            IndexError: the model has no such layer.

        Source: SafeSteer (arXiv 2606.02530), section 3.1.
        """
        vector = self.vector if rows is None else self.vector.to(rows.device) * rows[:, None]
        with steer(model, self.layer, vector, self.coefficient):
            yield
