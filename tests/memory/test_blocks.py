"""Activations of a block, against the tensors that autograd saves."""

from __future__ import annotations

import pytest
import torch
from tiny import plain

from safesteer.config.settings import Settings
from safesteer.distill.lora import with_lora
from safesteer.memory.blocks import Pass
from safesteer.memory.shape import Shape


def settings(**train: object) -> Settings:
    return Settings.model_validate(plain(train={"per_device_train_batch_size": 8, **train}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_block_keeps_is_what_autograd_saves(new_chat_model, dtype):
    """Every storage that is saved for the backward pass, counted once, without weights."""
    rows, width = 4, 48
    model = new_chat_model(hidden_size=64, intermediate_size=192, num_key_value_heads=1).model
    model.set_attn_implementation("eager")
    chosen = settings(lora={"r": 2}).train
    shape = Shape.of(model)
    student = with_lora(model.to(dtype), chosen, 0).train()
    weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(5, 300, (rows, width))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = student.get_base_model().model(ids, use_cache=False).last_hidden_state
    batch = Pass(shape, rows, width, size=dtype.itemsize, fused=False)
    assert shape.layers * batch.kept(chosen) == pytest.approx(sum(saved.values()), rel=0.03)
    hidden.sum().backward()
