"""Fixtures of the tests of training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from safesteer.distill import config
from safesteer.distill.trainer import SafeSteerTrainer


@pytest.fixture
def no_warmup(monkeypatch):
    """Without it the first of a few steps has a learning rate of 0."""
    monkeypatch.setattr(config, "WARMUP_RATIO", 0.0)


@pytest.fixture
def recorded(monkeypatch):
    """Every update's prompts and completions, and a copy of the student that wrote them."""
    updates: list[dict[str, Any]] = []
    original = SafeSteerTrainer._generate_and_score_completions

    def record(self, inputs):  # type: ignore[no-untyped-def]
        student = copy.deepcopy(self.accelerator.unwrap_model(self.model)).eval()
        output = original(self, inputs)
        completions = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(output["completion_ids"], output["completion_mask"], strict=True)
        ]
        updates.append({"rows": inputs, "completions": completions, "student": student})
        return output

    monkeypatch.setattr(SafeSteerTrainer, "_generate_and_score_completions", record)
    return updates


@pytest.fixture
def gradients(monkeypatch):
    """The gradients of every update, before they are clipped."""
    updates: list[list[torch.Tensor]] = []
    original = Accelerator.clip_grad_norm_

    def record(self, parameters, *args, **kwargs):  # type: ignore[no-untyped-def]
        parameters = list(parameters)
        updates.append([p.grad.clone() for p in parameters if p.grad is not None])
        return original(self, parameters, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", record)
    return updates
