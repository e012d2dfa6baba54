"""A refusal direction, and steering along it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from safesteer.models.steering import steer


@dataclass(frozen=True)
class Direction:
    """A refusal direction and where to add it.

        with direction.steer(model):  # any transformers model or PEFT model in memory
            model.generate(...)

    Attributes:
        vector: [D], float32, not normalized.
        layer: index of the block whose input it is added to.
        coefficient: factor on the vector.
        method: its source, harmful-harmless or refuse-comply.
        position: prompt position of its mean activations, counted from the end (-1 is the last
            token); None if they are means over the tokens of answers.

    Source: SafeSteer (arXiv 2606.02530), section 3.1.
    """

    vector: torch.Tensor
    layer: int
    coefficient: float = 1.0
    method: str = ""
    position: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The direction without its vector, as direction.json records it."""
        return {
            "method": self.method,
            "layer": self.layer,
            "position": self.position,
            "coefficient": self.coefficient,
            "norm": self.vector.norm().item(),
        }

    @contextmanager
    def steer(self, model: nn.Module, strengths: torch.Tensor | float = 1.0) -> Iterator[None]:
        """Add the direction to the residual stream of `model` while the context is open.

        h <- h + strength * coefficient * vector at the input of block `layer`, at all positions.

        Args:
            model: the model; its weights do not change.
            strengths: a factor on the coefficient, or [B] with one for each sequence of a batch.

        Raises:
            IndexError: the model has no such layer.
            InputError: the model has no transformer blocks that can be found.

        Source: SafeSteer (arXiv 2606.02530), section 3.1.
        """
        if isinstance(strengths, torch.Tensor):
            vectors = self.vector.to(strengths.device) * strengths[:, None]
            steered = steer(model, self.layer, vectors, self.coefficient)
        else:
            steered = steer(model, self.layer, self.vector, self.coefficient * strengths)
        with steered:
            yield
