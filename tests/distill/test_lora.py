"""Adapters: where they lie, what they leave alone, and their extrapolation."""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_training import (
    CONTEXT,
    lora_from,
    run,
    weights,
    without_timing,
)

from safesteer import distributed
from safesteer.distill.lora import extrapolate
from safesteer.errors import InputError
from safesteer.teacher import Teacher

pytestmark = pytest.mark.usefixtures("no_warmup")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_lie_from_the_first_layer_on(targets, tiny_chat_model, tmp_path):
    """Every linear layer named, in the blocks from the steered one on, and nowhere else."""
    student, _ = run(tiny_chat_model, tmp_path, max_steps=1, lora=lora_from("steered", targets))
    names = [name for name, p in student.named_parameters() if p.requires_grad and "lora_A" in name]
    kinds = 7 if targets == "all-linear" else 2
    layers = len(tiny_chat_model.model.model.layers)
    assert len(names) == kinds * (layers - 2)
    assert all(int(name.split(".layers.")[1].split(".")[0]) >= 2 for name in names)


def test_a_first_layer_that_cannot_be_is_one_line(tiny_chat_model, tmp_path):
    """PEFT's own errors name none of our settings."""
    with pytest.raises(InputError, match="first_layer = 1 needs all-linear or a list"):
        run(tiny_chat_model, tmp_path, lora=lora_from(1, "q_proj"))
    with pytest.raises(InputError, match="'steered', but the teacher is not steered"):
        run(tiny_chat_model, tmp_path, Teacher(None, CONTEXT), lora=lora_from("steered"))


def test_lora_leaves_the_base_weights_as_they_were(tiny_chat_model, tmp_path):
    """Only adapter weights are trained; every weight of the base is bit for bit the same."""
    before = weights(tiny_chat_model.model)
    student, _ = run(tiny_chat_model, tmp_path)
    after = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value
        for name, value in weights(student).items()
        if "lora_" not in name
    }
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    lora = {name: value for name, value in weights(student).items() if "lora_B" in name}
    assert lora and all(value.abs().max() > 0 for value in lora.values())
    assert not any(p.grad is not None for n, p in student.named_parameters() if "lora_" not in n)


def test_extrapolation_goes_further_along_the_change(new_chat_model, tmp_path):
    """Half as much again in every adapted matrix, once, however often a run is repeated."""
    plain, metrics = run(new_chat_model(), tmp_path / "plain")
    folder = tmp_path / "extrapolated"
    stronger = {"r": 4, "alpha": 8, "extrapolation": 0.5}
    run(new_chat_model(), folder, lora=stronger)
    further, found = run(new_chat_model(), folder, lora=stronger)
    assert without_timing(found) == without_timing(metrics)
    changes = {
        name: module.get_delta_weight("default")
        for name, module in plain.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert any(change.abs().max() > 1e-3 for change in changes.values())
    for name, change in changes.items():
        torch.testing.assert_close(
            further.get_submodule(name).get_delta_weight("default"), 1.5 * change
        )


def test_extrapolation_gathers_what_zero_3_has_parted(monkeypatch):
    """Such a parameter is changed by the main process while it is whole, and nowhere else."""
    whole: list[Any] = []

    @contextmanager
    def gathered(parameters, modifier_rank):  # type: ignore[no-untyped-def]
        assert modifier_rank == 0
        whole.extend(parameters)
        yield

    zero = types.ModuleType("deepspeed.zero")
    zero.GatheredParameters = gathered  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.zero", zero)
    student = torch.nn.ModuleDict(
        {"lora_A": torch.nn.Linear(2, 2), "lora_B": torch.nn.Linear(2, 2)}
    )
    student = torch.nn.ModuleDict({"q_proj": student})
    before = weights(student)
    parted = student["q_proj"]["lora_B"].weight
    parted.ds_id = 0
    extrapolate(student, 0.5)
    assert whole == [parted]
    torch.testing.assert_close(parted, 1.5 * before["q_proj.lora_B.weight"])
    torch.testing.assert_close(
        student["q_proj"]["lora_A"].weight, before["q_proj.lora_A.weight"], rtol=0, atol=0
    )
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    extrapolate(student, 0.5)
    torch.testing.assert_close(parted, 1.5 * before["q_proj.lora_B.weight"])


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ".*(q_proj|lm_head)"])
def test_an_adapter_on_the_output_head_is_refused(targets, tiny_chat_model, tmp_path):
    """The loss reads the base's output matrix, so nothing would train it; the model stays plain."""
    before = weights(tiny_chat_model.model)
    with pytest.raises(InputError, match="puts an adapter on the output head"):
        run(tiny_chat_model, tmp_path, lora=lora_from(0, targets))
    assert weights(tiny_chat_model.model).keys() == before.keys()
    assert not (tmp_path / "metrics.jsonl").exists()
