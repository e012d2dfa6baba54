"""The lines of metrics.jsonl."""

from __future__ import annotations

import math

import pytest
from accelerate import Accelerator
from tiny_training import (
    read_metrics,
    run,
)

from safesteer.distill.checkpoints import last_checkpoint
from safesteer.errors import SafeSteerError

pytestmark = pytest.mark.usefixtures("no_warmup")

KEYS = {
    "step",
    "loss",
    "grad_norm",
    "lr",
    "mass_student",
    "mass_teacher",
    "entropy",
    "completion_length",
    "refusal_rate",
    "anchor_refusal_rate",
    "tokens_per_second",
    "seconds",
}


def test_metrics_have_every_key(tiny_chat_model, tmp_path):
    """A line per update with every key of the contract, and none of them empty."""
    _, metrics = run(tiny_chat_model, tmp_path)
    assert [line["step"] for line in metrics] == [1, 2]
    for line in metrics:
        assert set(line) == KEYS
        assert set(line["seconds"]) == {"rollout", "teacher", "student", "optimizer"}
        assert all(value is not None for value in line.values())
        assert 0 < line["mass_student"] < 1 and 0 <= line["refusal_rate"] <= 1
        assert 1 <= line["completion_length"] <= 7
        whole = sum(line["seconds"].values())
        assert line["tokens_per_second"] == pytest.approx(
            line["completion_length"] * 8 / whole, rel=0.2
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_end_the_training(
    bad, tiny_chat_model, tmp_path, monkeypatch
):
    original, updates = Accelerator.clip_grad_norm_, []

    def spoil(self, parameters, *args, **kwargs):  # type: ignore[no-untyped-def]
        parameters = list(parameters)
        updates.append(None)
        if len(updates) == 3:  # the loss of this update is as it should be
            next(p for p in parameters if p.grad is not None).grad.fill_(bad)
        return original(self, parameters, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "clip_grad_norm_", spoil)
        with pytest.raises(SafeSteerError, match="non-finite gradients at step 3"):
            run(tiny_chat_model, tmp_path, max_steps=6, save_steps=2)
    # What was good stays, and the same call goes on from there.
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    _, resumed = run(tiny_chat_model, tmp_path, max_steps=6, save_steps=2)
    _, undisturbed = run(tiny_chat_model, tmp_path / "again", max_steps=6, save_steps=2)
    assert [line["step"] for line in resumed] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in resumed] == [line["loss"] for line in undisturbed]
