"""A linear probe for harmful requests on a model's activations.

It is fitted to SafeSteer's own prompts alone, so that no file of a run can mislead it, and to their
validation part, since runs train on the other. Ridge regression on the labels +1 and -1, both
classes weighing the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safesteer.direction.activations import request_means
from safesteer.events import Progress
from safesteer.models.chat import Message
from safesteer.models.load import ChatModel
from safesteer.prompts import load_prompt_set

RIDGE = 3.0  # penalty, as a share of the number of features


class HarmProbe:
    """A classifier of requests by the activations in the middle of a model.

    Requests are read at the input of the middle block, as the mean over their tokens: there the
    built-in model's activations separate them best on data sets that the probe has not seen
    (research/log/2026-11-27-linear-probe.md).

    Attributes:
        accuracy: the share of SafeSteer's own validation prompts that are classified rightly, each
            by a probe fitted to the others, both classes weighing the same.
    """

    def __init__(self, model: ChatModel, progress: Progress | None = None) -> None:
        self.model, self.layer = model, model.layers // 2
        harmful = [p.messages for p in load_prompt_set("harmful").validation]
        harmless = [
            p.messages
            for name in ("harmless", "borderline")
            for p in load_prompt_set(name).validation
        ]
        states = self._read([*harmful, *harmless], progress)
        self._fit(states[: len(harmful)], states[len(harmful) :])

    def _fit(self, harmful: torch.Tensor, harmless: torch.Tensor) -> None:
        states = torch.cat([harmful, harmless])
        self.center = (harmful.mean(0) + harmless.mean(0)) / 2
        self.scale = states.std(0).clamp_min(1e-12)
        features = (states - self.center) / self.scale
        count = (len(harmful), len(harmless))
        sign = torch.tensor([1.0] * count[0] + [-1.0] * count[1], dtype=features.dtype)
        weight = torch.where(sign > 0, 1 / count[0], 1 / count[1]) * len(states) / 2
        penalty = RIDGE * features.shape[1] * torch.diag(1 / weight)
        # As many unknowns as prompts, whatever the width of the model.
        inverse = torch.linalg.inv(features @ features.T + penalty)
        unknowns = inverse @ sign
        self.direction = features.T @ unknowns
        # Scores of each prompt by the probe that is fitted to all others (ridge has them at once).
        right = (sign - unknowns / inverse.diagonal()) * sign > 0
        self.accuracy = float((right * weight).sum() / weight.sum())

    def is_harmful(
        self, prompts: Sequence[Sequence[Message]], progress: Progress | None = None
    ) -> list[bool]:
        """Whether the probe takes each request for a harmful one."""
        if not prompts:
            return []
        features = (self._read(prompts, progress) - self.center) / self.scale
        return [score > 0 for score in (features @ self.direction).tolist()]

    def _read(
        self, prompts: Sequence[Sequence[Message]], progress: Progress | None
    ) -> torch.Tensor:
        return request_means(self.model, prompts, self.layer, progress=progress)
